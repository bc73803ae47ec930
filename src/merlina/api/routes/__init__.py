"""One module a section of the contract."""

from merlina.api.routes import datasets, general, jobs, live, queue

ROUTERS = (general.router, jobs.router, queue.router, datasets.router, live.router)
