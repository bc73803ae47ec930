"""The helper process: reads rows, renders previews and inspects models for the server and for `merlina data`."""
