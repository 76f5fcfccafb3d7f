"""S3 by Ceph's object gateway."""

import json
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import boto3
from machines import sh
from services import Service, answers, wait_until, write_secret

CEPH = """
[global]
fsid = {fsid}
mon_initial_members = a
mon_host = v2:127.0.0.1:{port}
public_addr = 127.0.0.1
public_network = 127.0.0.0/8
auth_cluster_required = cephx
auth_service_required = cephx
auth_client_required = cephx
keyring = {folder}/$name.keyring
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 8
osd_pool_default_pgp_num = 8
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 2000
mon_data_avail_warn = 3
mon_data_avail_crit = 2
run_dir = {folder}
log_file = {folder}/$name.log
admin_socket = {folder}/$name.asok
crash_dir = {folder}/crash
setuser_match_path =
[mon]
mon_data = {folder}/$name
mon_cluster_log_file = {folder}/cluster.log
[osd]
osd_data = {folder}/$name
osd_objectstore = bluestore
bluestore_block_size = 8589934592
osd_memory_target = 1073741824
[client.rgw]
rgw_data = {folder}/rgw
rgw_frontends = beast endpoint={endpoint} tcp_nodelay=1
rgw_enable_usage_log = false
"""


@dataclass(frozen=True)
class S3(Service):
    """Ceph with one monitor and one disk, which is a sparse file of 8 GiB; they listen on loopback, the gateway at `endpoint`."""

    endpoint: str  # HOST:PORT
    monitor_port: int
    bucket: str  # of a user of the same name, who alone may enter

    @property
    def url(self) -> str:
        return f"http://{self.endpoint}"

    def keys(self) -> dict[str, str]:
        """The environment of who works with the bucket."""
        found: dict[str, str] = json.loads((self.folder / "keys").read_text())
        return found

    def ceph(self, program: str, *args: str | Path) -> str:
        return sh(program, "-c", self.folder / "ceph.conf", *args)

    def make(self) -> None:
        f = self.folder
        for each in ("crash", "mon.a", "osd.0", "rgw"):
            (f / each).mkdir(parents=True, exist_ok=True)
        fsid = str(uuid4())
        conf = CEPH.format(fsid=fsid, port=self.monitor_port, folder=f, endpoint=self.endpoint)
        (f / "ceph.conf").write_text(conf)
        every = ["--cap", "mon", "allow *", "--cap", "osd", "allow *"]
        sh("ceph-authtool", "--create-keyring", f / "mon.keyring", "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
        sh("ceph-authtool", "--create-keyring", f / "client.admin.keyring", "--gen-key", "-n", "client.admin", *every)
        sh("ceph-authtool", f / "mon.keyring", "--import-keyring", f / "client.admin.keyring")
        address = f"[v2:127.0.0.1:{self.monitor_port}]"
        sh("monmaptool", "--create", "--clobber", "--fsid", fsid, "--addv", "a", address, f / "monmap")
        self.ceph("ceph-mon", "--mkfs", "-i", "a", "--monmap", f / "monmap", "--keyring", f / "mon.keyring")
        self.daemon("ceph-mon", "-c", f / "ceph.conf", "-i", "a", "-f")
        allowed = {
            "osd.0": ["mon", "allow profile osd", "osd", "allow *"],
            "client.rgw": ["mon", "allow rw", "osd", "allow rwx"],
        }
        for who, caps in allowed.items():
            keyring = self.ceph("ceph", "--connect-timeout", "30", "auth", "get-or-create", who, *caps)
            write_secret(f / f"{who}.keyring", keyring)
        uuid = str(uuid4())
        self.ceph("ceph", "osd", "new", uuid)
        self.ceph("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", uuid)
        self.ceph("ceph", "osd", "crush", "add", "osd.0", "1.0", "root=default", "host=localhost")
        self.daemon("ceph-osd", "-c", f / "ceph.conf", "-i", "0", "-f")
        wait_until(lambda: '"num_up_osds":1' in self.ceph("ceph", "osd", "stat", "-f", "json"), "ceph's disk", 60)
        user = [f"--uid={self.bucket}", f"--display-name={self.bucket}"]
        key = json.loads(self.ceph("radosgw-admin", "user", "create", *user))["keys"][0]
        env = {
            "AWS_ENDPOINT_URL_S3": self.url,
            "AWS_ACCESS_KEY_ID": key["access_key"],
            "AWS_SECRET_ACCESS_KEY": key["secret_key"],
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        write_secret(f / "keys", json.dumps(env))
        self.daemon("radosgw", "-c", f / "ceph.conf", "-n", "client.rgw", "-f")
        self.wait()
        self.client().create_bucket(Bucket=self.bucket)

    def start(self) -> None:
        for program, who in (("ceph-mon", ("-i", "a")), ("ceph-osd", ("-i", "0")), ("radosgw", ("-n", "client.rgw"))):
            self.daemon(program, "-c", self.folder / "ceph.conf", *who, "-f")
        self.wait()

    def answers(self) -> bool:
        return answers(self.url)

    def client(self):  # type: ignore[no-untyped-def]
        """boto3's, with the bucket's keys."""
        env = self.keys()
        session = boto3.Session(
            env["AWS_ACCESS_KEY_ID"], env["AWS_SECRET_ACCESS_KEY"], region_name=env["AWS_DEFAULT_REGION"]
        )
        return session.client("s3", endpoint_url=self.url)
