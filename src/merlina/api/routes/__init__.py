"""The endpoints, one module for each subject. To add one: ARCHITECTURE.md, "Checklists"."""

from merlina.api.routes import (
    chat,
    completions,
    configs,
    datasets,
    general,
    gpus,
    jobs,
    live,
    models,
    queue,
    session,
    system,
)

ROUTERS = (
    general.router,
    system.router,
    session.router,
    jobs.router,
    queue.router,
    gpus.router,
    datasets.router,
    configs.router,
    models.router,
    chat.router,
    completions.router,
    live.router,
)
