"""The executor for a GPU: state that stays on the device, and steps that wait for nobody."""
