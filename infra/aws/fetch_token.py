"""Writes the cluster's token from AWS Parameter Store to ~/.ray/auth_token, readable by this user alone.

    python infra/aws/fetch_token.py --region us-east-1

On a node the role gives access; on your machine, your own profile.
"""

import argparse
import os
import sys
from pathlib import Path

import boto3
from botocore.exceptions import BotoCoreError, ClientError


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--region", required=True)
    parser.add_argument("--parameter", default="/ddpm/ray-auth-token", help="a SecureString (default: %(default)s)")
    given = parser.parse_args()
    try:
        store = boto3.client("ssm", region_name=given.region)
        token = store.get_parameter(Name=given.parameter, WithDecryption=True)["Parameter"]["Value"]
    except (BotoCoreError, ClientError) as error:
        print(
            f"error: parameter {given.parameter} of {given.region} cannot be read: {error}; expected a SecureString there, "
            "and ssm:GetParameter in this machine's role",
            file=sys.stderr,
        )
        return 1
    path = Path("~/.ray/auth_token").expanduser()
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.unlink(missing_ok=True)  # an older one may have been readable by others
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(token.strip())
    return 0


if __name__ == "__main__":
    sys.exit(main())
