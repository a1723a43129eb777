"""Speed and memory of the service: beside other servers, under load, and with growing input."""
