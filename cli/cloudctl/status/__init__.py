"""The state of the cloud: read from every node and from the API, then judged."""
