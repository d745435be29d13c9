"""What `dvc status` says of the working tree: the stages that would run again."""

import re

from dvc.exceptions import DvcException
from dvc.lock import LockError
from dvc.repo import Repo

from stages.settings.errors import UserError

ALWAYS = ["always changed"]  # all that DVC says of a stage such as `check_data`, which nothing depends on


def changed_stages() -> list[str]:
    """Stages whose results are of other settings, code or data than those that lie here now.

    Raises:
        UserError: this is no repository of DVC, or another command of DVC is at work in it.
    """
    try:
        with Repo() as repo:
            status = repo.status()
    except LockError as error:  # DVC's text tells to remove the lock, which may be that of a run at work
        at_work = ", ".join(dict.fromkeys(re.findall(r"PID \d+", str(error))))
        what = f"a run is going on ({at_work})" if at_work else "another command of DVC holds its lock"
        raise UserError(f"{what}; wait for it, or see `make doctor`") from error
    except DvcException as error:
        raise UserError(str(error)) from error
    return [name for name, what in status.items() if what != ALWAYS]
