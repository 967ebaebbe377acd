"""From the site and the service definitions to what every node should look like, and to a plan."""
