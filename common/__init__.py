"""What both programs share: the model, the codec, the wire, errors, config, logging, metrics and clock."""
