"""Speed measured so that it can be compared: networks, the loader, and the way from a video file to its label."""
