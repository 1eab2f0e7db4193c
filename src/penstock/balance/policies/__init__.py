"""Which replica a request goes to. Pure: no clock, no network, no Ray."""
