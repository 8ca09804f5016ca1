"""Running Forebay: the sample configs and images for edge and cloud, the development services, the demo."""
