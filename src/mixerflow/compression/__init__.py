"""A lossless codec of images out of a flow, whose files decode on every machine."""
