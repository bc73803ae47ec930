"""The programs that the server starts: `run` carries out an attempt, `helper` reads data and models, `chat` answers.

The modules beside these packages are shared: chat templates, encoding, and limits of time and memory.
"""
