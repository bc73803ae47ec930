"""The training itself: tokens, batches, log-probabilities, objectives, adapters, the loop and its checkpoints.

Pure torch and transformers: nothing here knows of jobs, the web, a database or the environment.
"""
