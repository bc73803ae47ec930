"""The process of a run: stages from data to saved model, stop and pause requests, reporting, publishing, several GPUs."""
