"""Every error that supertiny raises on purpose.

SupertinyError
├── ConfigError         (ValueError)         the config, a flag or an override is wrong: exit status 2
├── MissingInput        (FileNotFoundError)  a model, data file or artifact is not where the config says
├── CorruptArtifact     (ValueError)         a file differs from its manifest's hash, or cannot be read
├── InUse               (RuntimeError)       another process is making the artifact
├── PlanTooBig          (RuntimeError)       the cluster can never give what the plan asks for
├── BudgetExceeded      (RuntimeError)       the work costs, or will cost, more dollars than the config allows
├── NoProgress          (TimeoutError)       something made no progress for longer than its limit
├── NoAnswer            (RuntimeError)       a model generates nothing, where that is to be timed
├── MalformedCall       (ValueError)         a completion is not a well-formed list of function calls
├── ToolFailure         (RuntimeError)       a tool refused its arguments, raised, or ran out of time
├── PromptRefused       (ValueError)         an engine cannot take a prompt: too long, or nothing its template or grammar knows
├── ArmBusy             (RuntimeError)       a served arm's queue is full, or no replica of it is up
├── OpenCluster         (PermissionError)    strangers could send jobs to the cluster that this one would run on
├── Unhealthy           (RuntimeError)       `jobs/doctor.py` found what would fail later
├── Stopped             (InterruptedError)   work was told to end, and the same command goes on from what it left
├── NotFinite           (ArithmeticError)    a loss or gradient is NaN or infinite
└── GateNotPassed       (RuntimeError)       promotion of an artifact whose gate did not pass

Each takes one message, so that it pickles across Ray.
"""


class SupertinyError(Exception):
    """Any error that supertiny raises on purpose; its message says what to do."""


class ConfigError(SupertinyError, ValueError):
    """The config, a flag or an override is wrong."""


class MissingInput(SupertinyError, FileNotFoundError):
    """A model, data file or artifact is not where the config says."""


class CorruptArtifact(SupertinyError, ValueError):
    """A file differs from its manifest's hash, or cannot be read."""


class InUse(SupertinyError, RuntimeError):
    """Another process is making the artifact."""


class PlanTooBig(SupertinyError, RuntimeError):
    """The cluster can never give what the plan asks for."""


class BudgetExceeded(SupertinyError, RuntimeError):
    """The work costs, or will cost, more dollars than the config allows."""


class NoProgress(SupertinyError, TimeoutError):
    """Something made no progress for longer than its limit."""


class NoAnswer(SupertinyError, RuntimeError):
    """A model generates nothing, where that is to be timed."""


class MalformedCall(SupertinyError, ValueError):
    """A completion is not a well-formed list of function calls."""


class ToolFailure(SupertinyError, RuntimeError):
    """A tool refused its arguments, raised, or ran out of time."""


class PromptRefused(SupertinyError, ValueError):
    """An engine cannot take a prompt: too long, nothing its template renders, or a schema that it has no grammar for."""


class ArmBusy(SupertinyError, RuntimeError):
    """A served arm's queue is full, or no replica of it is up."""


class OpenCluster(SupertinyError, PermissionError):
    """Strangers could send jobs to the cluster that this one would run on."""


class Unhealthy(SupertinyError, RuntimeError):
    """`jobs/doctor.py` found what would fail later."""


class Stopped(SupertinyError, InterruptedError):
    """Work was told to end, and left what the same command goes on from."""


class NotFinite(SupertinyError, ArithmeticError):
    """A loss or gradient is NaN or infinite."""


class GateNotPassed(SupertinyError, RuntimeError):
    """Promotion of an artifact whose gate did not pass."""
