"""Pure values that cross an edge: requests, responses, config files and events."""
