"""Switching the whole cloud off and on: power drivers, the steps of both ways, the decisions behind them."""
