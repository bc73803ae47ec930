"""The helper process: reads rows, renders previews and inspects models on behalf of the server."""
