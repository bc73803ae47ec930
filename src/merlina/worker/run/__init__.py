"""The process of an attempt: stages from data to saved model, requests, reporting, publishing, several GPUs."""
