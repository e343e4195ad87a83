"""Bodies of those commands that join packages: predict, test, demo. Each is imported when it is called."""
