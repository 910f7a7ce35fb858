"""Recorders of plans. The engine knows them only as a Protocol (``octavo.engine.engine.Recorder``)."""
