"""One module a section of the contract."""

from merlina.api.routes import configs, datasets, general, gpus, jobs, live, queue

ROUTERS = (
    general.router,
    jobs.router,
    queue.router,
    gpus.router,
    datasets.router,
    configs.router,
    live.router,
)
