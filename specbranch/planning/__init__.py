"""What to expect on hardware that is not at hand: traces of a pair, costs, a replay of policies."""

from .costs import Costs, Hardware, Table
from .measure import measure_costs
from .plan import Grid, Plan, plan
from .record import record_trace, record_traces
from .simulate import Prediction, Simulator, simulate
from .trace import Origin, Trace, Traces, iid_trace

__all__ = [
    "Costs",
    "Grid",
    "Hardware",
    "Origin",
    "Plan",
    "Prediction",
    "Simulator",
    "Table",
    "Trace",
    "Traces",
    "iid_trace",
    "measure_costs",
    "plan",
    "record_trace",
    "record_traces",
    "simulate",
]
