"""What a device may install: signed lists of model packages after The Update Framework (https://theupdateframework.io)."""
