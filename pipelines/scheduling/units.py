"""What calls `schedule.py tick` each minute: cron, or systemd, where a machine that slept makes up for it."""

import shlex
import sys

from pipelines.scheduling.jobs import project_root

_UNITS = """\
# a line of `crontab -e`:
* * * * * {tick}
# Neither cron nor systemd has your shell's variables: say there, too, what is set here of AWS_*, MLFLOW_TRACKING_URI and
# RAY_API_SERVER_ADDRESS (a line NAME=VALUE each above it; below [Service] as Environment=NAME=VALUE, or EnvironmentFile=).

# or ~/.config/systemd/user/ddpm-tick.service:
[Unit]
Description=Scheduled sampling: what is due in {store}

[Service]
Type=oneshot
ExecStart={tick}

# and ~/.config/systemd/user/ddpm-tick.timer, then `systemctl --user enable --now ddpm-tick.timer`:
[Unit]
Description=Each minute

[Timer]
OnCalendar=minutely
Persistent=true

[Install]
WantedBy=timers.target"""


def units(store: str) -> str:
    """For this Python and this copy of the project; credentials of a store on S3 come by the service's environment."""
    tick = shlex.join([sys.executable, str(project_root() / "pipelines/schedule.py"), "tick", "--store", store])
    return _UNITS.format(tick=tick, store=store)
