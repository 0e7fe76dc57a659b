"""Other ways to a deeper network, as children of the same splice: what CompNet is measured against."""
