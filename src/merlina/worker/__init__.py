"""The programs that the server starts: a worker, a helper, the chat process and a spare process.

`__main__` is the worker's, which carries out an attempt by `run`; `helper` reads data and models, `chat` answers, and
`spare` waits to become one of them. The other modules are shared: chat templates, encoding, and limits of time and
memory.
"""
