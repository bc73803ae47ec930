"""One module a section of the contract."""

from merlina.api.routes import configs, datasets, general, gpus, jobs, live, models, queue, session, system, talk

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
    talk.router,
    live.router,
)
