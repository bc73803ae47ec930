"""The processes that the server starts and ends: workers, helper processes and the chat process."""
