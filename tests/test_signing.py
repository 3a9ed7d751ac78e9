"""What is signed is all that is published; nothing enters a registry that demands a signature without it."""

from __future__ import annotations

import base64
import datetime
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID as EKU
from cryptography.x509.oid import NameOID

from robustkt import api
from robustkt.errors import IntegrityError, RobustKTError
from robustkt.hub import signing
from robustkt.numbers import canonical, digest
from robustkt.registry import Registry, verify
from robustkt.registry.seal import sealed
from tests.conftest import Ran
from tests.hubs import contents, kept, lineage, names, standing
from tests.hubstandin import Entry, HubStandIn

Cli = Callable[..., Ran]
PASSWORD = b"a password"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return lineage(Registry(tmp_path_factory.mktemp("made") / "registry"))


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of alice and bob; alice's with a password; one of RSA; an authority, its certificate of alice; another."""
    place = tmp_path_factory.mktemp("keys")
    own = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("alice", "bob", "ca", "other")}
    for name, key in {**own, "rsa": rsa.generate_private_key(65537, 2048)}.items():
        (place / f"{name}.pem").write_bytes(private(key))
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (place / f"{name}.pub").write_bytes(public)
    (place / "locked.pem").write_bytes(private(own["alice"], BestAvailableEncryption(PASSWORD)))
    for name in ("ca", "other"):
        (place / f"{name}.crt").write_bytes(certificate(name, own[name], name, own[name]))
    (place / "alice.crt").write_bytes(certificate("alice", own["alice"], "ca", own["ca"]))
    for name, usage in (("server", EKU.SERVER_AUTH), ("code", EKU.CODE_SIGNING)):
        (place / f"{name}.crt").write_bytes(certificate("alice", own["alice"], "ca", own["ca"], usage))
    return place


def private(key: Any, encryption: Any = None) -> bytes:
    found: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption())
    return found


def certificate(name: str, key: Any, issuer: str, signer: Any, extended: Any = None) -> bytes:
    now = datetime.datetime.now(datetime.UTC)
    subject, by = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, one)]) for one in (name, issuer))
    ca = name == issuer
    usage = x509.KeyUsage(not ca, False, False, False, False, ca, ca, False, False)
    builder = x509.CertificateBuilder(by, subject, key.public_key(), x509.random_serial_number(), now, now.replace(
        year=now.year + 1, day=1
    ))  # fmt: skip
    builder = builder.add_extension(x509.BasicConstraints(ca, None), critical=True).add_extension(usage, critical=True)
    if extended is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage([extended]), critical=False)
    return builder.sign(signer, hashes.SHA256()).public_bytes(Encoding.PEM)


@pytest.fixture
def hub() -> Iterator[HubStandIn]:
    with standing() as found:
        yield found


@pytest.fixture(scope="module")
def whole(made: Registry, keys: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "gen1"
    api.push("gen1", to=folder, with_ancestors=True, sign=f"key:{keys / 'alice.pem'}", registry=made)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "theirs"))


def refused(folder: Path, registry: Registry, required: str, what: str) -> None:
    with pytest.raises(IntegrityError, match=what):
        api.pull(str(folder), require_signature=required, registry=registry)
    assert names(registry) == {}
    assert kept(registry) == {}


def reindex(folder: Path) -> None:
    """What somebody who changes a file does next: an index that fits."""
    content = json.loads((folder / "robustkt.json").read_bytes())
    del content["digest"]
    files = {p: data for p, data in contents(folder).items() if p not in ("robustkt.json", "model.sig")}
    content["files"] = {path: {"hash": digest(file), "size": len(file)} for path, file in files.items()}
    (folder / "robustkt.json").write_bytes(sealed(content))


# -- what is signed ----------------------------------------------------------------------------------------------------


def test_a_signature_is_over_every_file_and_taken_over(cli: Cli, folder: Path, keys: Path, registry: Registry) -> None:
    bundle = json.loads((folder / "model.sig").read_bytes())
    payload = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    signed = {one["name"]: f"sha256:{one['digest']}" for one in payload["predicate"]["resources"]}
    assert signed == {path: digest(file) for path, file in contents(folder).items() if path != "model.sig"}
    assert str(folder.parent) not in json.dumps(payload)
    ran = cli("pull", folder, "--require-signature", f"key:{keys / 'alice.pub'}", "--registry", registry.root)
    assert ran.code == 0, ran.err
    assert "a key of alice.pub" in ran.out
    assert verify(registry) == []
    plain = Registry(registry.root.parent / "plain")
    assert api.pull(str(folder), registry=plain)["signed_by"] is None
    assert kept(plain) == kept(registry)


@pytest.mark.parametrize("target", ["folder", "file", "nothing"])
def test_a_link_beside_what_was_signed_is_refused(
    folder: Path, keys: Path, registry: Registry, tmp_path: Path, target: str
) -> None:
    place = {"folder": tmp_path / "theirs.d", "file": tmp_path / "theirs.txt", "nothing": tmp_path / "nothing"}[target]
    if target == "folder":
        place.mkdir()
    elif target == "file":
        place.write_text("x")
    (folder / "more").symlink_to(place)
    refused(folder, registry, f"key:{keys / 'alice.pub'}", r"'more' of .* was added after it was signed")


def test_other_tools_verify_it(folder: Path, keys: Path) -> None:
    words = ["verify", "key", folder, "--signature", folder / "model.sig", "--public_key", keys / "alice.pub"]
    command = [sys.executable, "-m", "model_signing", *map(str, words)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr + ran.stdout
    (folder / "README.md").write_text("other")
    assert subprocess.run(command, capture_output=True, text=True, check=False).returncode != 0


def test_without_a_signature_and_with_another_key(folder: Path, keys: Path, registry: Registry) -> None:
    alice, bob = (f"key:{keys / name}.pub" for name in ("alice", "bob"))
    refused(folder, registry, bob, r"is signed with another key than bob\.pub")
    refused(folder, registry, f"cert:{keys / 'ca.crt'}", "is signed with a key, not with a certificate")
    (folder / "model.sig").unlink()
    refused(folder, registry, alice, "is not signed: it has no model.sig")


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("model.safetensors", "model.safetensors of .* has changed since it was signed"),
        ("README.md", "README.md of .* has changed since it was signed"),
        ("certified_accuracy.png", "certified_accuracy.png of .* has changed since"),
        ("robustkt.json", "robustkt.json of .* has changed since it was signed"),
    ],
)
def test_a_changed_file_is_named(folder: Path, keys: Path, registry: Registry, path: str, what: str) -> None:
    required = f"key:{keys / 'alice.pub'}"
    if path == "robustkt.json":
        content = json.loads((folder / path).read_bytes())
        del content["digest"]
        (folder / path).write_bytes(sealed({**content, "names": ["other"]}))
    else:
        (folder / path).write_bytes((folder / path).read_bytes() + b" ")
        refused(folder, registry, required, "damaged")
        reindex(folder)
    refused(folder, registry, required, what)


def test_a_removed_and_an_added_file_are_named(folder: Path, keys: Path, registry: Registry) -> None:
    required = f"key:{keys / 'alice.pub'}"
    (folder / "notes.txt").write_text("mine")
    refused(folder, registry, required, "'notes.txt' of .* was added after it was signed")
    (folder / "notes.txt").unlink()
    extra = folder / "evaluations" / "evaluation-00.json"
    extra.parent.mkdir(exist_ok=True)
    extra.write_text("{}")
    reindex(folder)
    refused(folder, registry, required, "evaluation-00.json of .* was added after it was signed")
    extra.unlink()
    (folder / "certified_accuracy.png").unlink()
    reindex(folder)
    refused(folder, registry, required, "certified_accuracy.png of .* was signed and is missing")


def test_forged_signatures_are_refused(folder: Path, keys: Path, registry: Registry) -> None:
    """Whatever is changed in it, up to one that names other files."""
    required, path = f"key:{keys / 'alice.pub'}", folder / "model.sig"
    bundle = json.loads(path.read_bytes())

    def forged(change: Callable[[dict[str, Any]], Any]) -> None:
        content = json.loads(json.dumps(bundle))
        change(content)
        path.write_bytes(canonical(content))
        refused(folder, registry, required, "damaged or forged|is signed with|Sigstore bundle|signature of a model")

    payload = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    payload["predicate"]["resources"].pop()
    other = base64.b64encode(canonical(payload)).decode()
    signature = bundle["dsseEnvelope"]["signatures"][0]["sig"]
    forged(lambda c: c["dsseEnvelope"].update(payload=other))
    forged(lambda c: c["dsseEnvelope"]["signatures"][0].update(sig=base64.b64encode(b"0" * 70).decode()))
    forged(lambda c: c["dsseEnvelope"]["signatures"][0].update(sig=signature[:-8] + "AAAAAAA="))
    forged(lambda c: c["dsseEnvelope"].update(signatures=[]))
    forged(lambda c: c["dsseEnvelope"].update(payloadType="text/plain", payload=""))
    forged(lambda c: c.update(verificationMaterial={}))
    forged(lambda c: c.update(verificationMaterial=[]))
    forged(lambda c: c.update(mediaType="application/json"))
    forged(lambda c: c.pop("dsseEnvelope"))
    for text in (b"", b"{}", b"[1]", b"\xff\xfe", b"[" * 100_000):
        path.write_bytes(text)
        refused(folder, registry, required, "not the JSON|no Sigstore bundle")


def test_a_certificate_signs_without_its_authority(
    cli: Cli, made: Registry, keys: Path, tmp_path: Path, registry: Registry
) -> None:
    means = f"cert:{keys / 'alice.crt'},{keys / 'alice.pem'}"
    for _ in range(2):
        ran = cli("push", "gen0", "--to", tmp_path / "out", "--sign", means, "--registry", made.root)
        assert ran.code == 0, ran.err
    refused(tmp_path / "out", registry, f"cert:{keys / 'other.crt'}", "is not one by a certificate of other.crt")
    api.pull(str(tmp_path / "out"), require_signature=f"cert:{keys / 'ca.crt'}", registry=registry)


def test_a_servers_certificate_signs_no_code(
    made: Registry, keys: Path, tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, server = (f"cert:{keys / name}.crt,{keys / 'alice.pem'},{keys / 'ca.crt'}" for name in ("code", "server"))
    required = f"cert:{keys / 'ca.crt'}"
    with pytest.raises(RobustKTError, match=r"the certificate server\.crt is not for signing code"):
        api.push("gen0", to=tmp_path / "out", sign=server, registry=made)
    with monkeypatch.context() as theirs:  # a publisher with another tool
        theirs.setattr(signing, "_may_sign", lambda certificate: True)
        api.push("gen0", to=tmp_path / "out", sign=server, registry=made)
    refused(tmp_path / "out", registry, required, "is signed with a certificate that is not for signing code")
    api.push("gen0", to=tmp_path / "out", sign=code, registry=made)
    api.pull(str(tmp_path / "out"), require_signature=required, registry=registry)


def test_a_certificate_signs_for_its_authority(made: Registry, keys: Path, tmp_path: Path, registry: Registry) -> None:
    means = f"cert:{keys / 'alice.crt'},{keys / 'alice.pem'},{keys / 'ca.crt'}"
    told = api.push("gen0", to=tmp_path / "out", sign=means, registry=made)
    assert told["signed_by"] == "a certificate of alice.crt, alice.pem, ca.crt"
    refused(tmp_path / "out", registry, f"cert:{keys / 'other.crt'}", "is not one by a certificate of other.crt")
    refused(tmp_path / "out", registry, f"key:{keys / 'alice.pub'}", "is signed with a certificate, not with a key")
    api.pull(str(tmp_path / "out"), require_signature=f"cert:{keys / 'ca.crt'}", registry=registry)
    before = (tmp_path / "out" / "model.sig").read_bytes()
    api.push("gen0", to=tmp_path / "out", sign=means, registry=made)
    assert (tmp_path / "out" / "model.sig").read_bytes() == before, "it is signed already"


@pytest.mark.parametrize(
    ("command", "what"),
    [
        ("push gen0 --to out --sign me", "--sign me names nothing to sign with"),
        ("push gen0 --to out --sign key:", "--sign key: names nothing to sign with"),
        ("push gen0 --to out --sign cert:alice.crt", "names nothing to sign with"),
        ("push gen0 --to out --sign sigstore:me", "names nothing to sign with"),
        ("push gen0 --to out --sign key:no.pem", "there is no file no.pem"),
        ("push gen0 --to out --sign key:alice.pub", "alice.pub holds no private key"),
        ("push gen0 --to out --sign key:rsa.pem", "the key rsa.pem is not on a curve P-256"),
        ("push gen0 --to out --sign key:locked.pem", "the key locked.pem is encrypted"),
        ("push gen0 --to out --sign cert:alice.crt,bob.pem", "cannot sign with a certificate of alice.crt, bob.pem"),
        ("push gen0 --to out --sign cert:alice.crt,locked.pem", "the key locked.pem is encrypted"),
        ("pull ./x --require-signature key", "--require-signature key names nobody's signature"),
        ("pull ./x --require-signature key:a,b", "names nobody's signature"),
        ("pull ./x --require-signature sigstore:me@example.org", "names nobody's signature"),
        ("pull ./x --require-signature key:no.pub", "there is no file no.pub"),
    ],
)
def test_wrong_options_are_told_in_two_lines(
    cli: Cli, made: Registry, keys: Path, monkeypatch: pytest.MonkeyPatch, command: str, what: str
) -> None:
    monkeypatch.chdir(keys)
    ran = cli(*command.split(), "--registry", made.root)
    assert (ran.code, ran.out) in ((1, ""), (2, "")), ran
    assert what in ran.err
    assert len(ran.err.splitlines()) == 2, ran.err
    assert not (keys / "out").exists()


def test_a_key_with_a_password(
    made: Registry, keys: Path, tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    means = f"key:{keys / 'locked.pem'}"
    monkeypatch.setenv("ROBUSTKT_SIGN_PASSWORD", "wrong")
    with pytest.raises(RobustKTError, match="or ROBUSTKT_SIGN_PASSWORD is not its password"):
        api.push("gen0", to=tmp_path / "out", sign=means, registry=made)
    monkeypatch.setenv("ROBUSTKT_SIGN_PASSWORD", PASSWORD.decode())
    api.push("gen0", to=tmp_path / "out", sign=means, registry=made)
    api.pull(str(tmp_path / "out"), require_signature=f"key:{keys / 'alice.pub'}", registry=registry)


def test_what_is_no_public_key_is_told(folder: Path, keys: Path, registry: Registry) -> None:
    for name in ("rsa.pub", "alice.crt", "alice.pem"):
        with pytest.raises(RobustKTError, match=rf"{name} holds no elliptic public key"):
            api.pull(str(folder), require_signature=f"key:{keys / name}", registry=registry)
    with pytest.raises(RobustKTError, match=r"alice\.pub holds no certificates"):
        api.pull(str(signed_by_certificate(keys, folder)), require_signature=f"cert:{keys / 'alice.pub'}",
                 registry=registry)  # fmt: skip


def signed_by_certificate(keys: Path, folder: Path) -> Path:
    """The folder with another kind of signature, whatever it says."""
    bundle = json.loads((folder / "model.sig").read_bytes())
    bundle["verificationMaterial"] = {"x509CertificateChain": {"certificates": []}}
    (folder / "model.sig").write_bytes(canonical(bundle))
    return folder


def test_the_extra_is_named_where_it_is_missing(
    cli: Cli, made: Registry, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [m for m in sys.modules if m.split(".")[0] == "model_signing"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "model_signing", None)
    for command in (("push", "gen0", "--to", "out", "--sign"), ("pull", "./x", "--require-signature")):
        ran = cli(*command, f"key:{keys / 'alice.pem'}", "--registry", made.root)
        assert (ran.code, ran.out) == (2, "")
        assert f"{command[-1]} needs model-signing\n  → Run pip install 'robustkt[sign]'." in ran.err


def test_keyless_without_network_or_identity_is_told(
    cli: Cli, made: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sigstore.models import ClientTrustConfig

    def unreachable(*_: Any) -> None:
        raise OSError("Network is unreachable")

    for name in ("GITHUB_ACTIONS", "CIRCLECI", "GITLAB_CI", "BUILDKITE", "SIGSTORE_IDENTITY_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sigstore.oidc.detect_credential", lambda *_: None)
    ran = cli("push", "gen0", "--to", "out", "--sign", "sigstore", "--registry", made.root)
    assert (ran.code, ran.out) == (1, "")
    assert "error: there is nobody to sign as" in ran.err
    monkeypatch.setattr(ClientTrustConfig, "production", unreachable)
    monkeypatch.setenv("SIGSTORE_IDENTITY_TOKEN", "secret-token")
    ran = cli("push", "gen0", "--to", "out", "--sign", "sigstore", "--registry", made.root)
    assert "error: Sigstore refuses, or cannot be reached: Network is unreachable\n" in ran.err
    assert "secret-token" not in ran.err
    assert not (tmp_path / "out").exists()


# -- on the Hub --------------------------------------------------------------------------------------------------------


def test_signed_on_the_hub(hub: HubStandIn, made: Registry, keys: Path, registry: Registry) -> None:
    means, required = f"key:{keys / 'alice.pem'}", f"key:{keys / 'alice.pub'}"
    first = api.push("gen0", sign=means, registry=made)
    repo = hub.repos["model", "alice/gen0"]
    assert len(repo.commits) == 2, "the signature is in the same commit"
    for more in ({"sign": means}, {}):
        again = api.push("gen0", registry=made, **more)  # type: ignore[arg-type]
        assert (again["created"], again["commit"]) == (False, first["commit"]), "it is signed already"
    assert api.push("gen0", sign=f"key:{keys / 'bob.pem'}", registry=made)["created"], "another's is made"
    api.push("gen0", sign=means, registry=made)
    api.push("gen1", registry=made)
    with pytest.raises(IntegrityError, match=r"alice/gen1@.* is not signed"):
        api.pull("alice/gen1", require_signature=required, registry=registry)
    api.push("gen1", sign=means, registry=made)
    told = api.pull("alice/gen1", require_signature=required, registry=registry)
    assert (told["ancestors"], told["signed_by"]) == (["gen0"], "a key of alice.pub")
    other = Registry(registry.root.parent / "other")
    api.push("gen0", sign=f"key:{keys / 'bob.pem'}", registry=made)
    with pytest.raises(IntegrityError, match=r"alice/gen0@.* is signed with another key than alice\.pub"):
        api.pull("alice/gen1", require_signature=required, registry=other)
    assert kept(other) == {}


def test_an_outdated_signature_goes(cli: Cli, hub: HubStandIn, made: Registry, keys: Path) -> None:
    api.push("gen0", repo="alice/x", sign=f"key:{keys / 'alice.pem'}", registry=made)
    ran = cli("push", "gen1", "--repo", "alice/x", "--registry", made.root)
    assert ran.code == 0, ran.err
    assert "model.sig is of the earlier publication and goes" in ran.err
    assert "of an earlier publication, removed: model.sig" in ran.out
    repo = hub.repos["model", "alice/x"]
    assert "model.sig" not in repo.commits[repo.branches["main"]].tree


def test_a_file_that_was_added_on_the_hub_is_refused(
    hub: HubStandIn, made: Registry, keys: Path, registry: Registry
) -> None:
    api.push("gen0", sign=f"key:{keys / 'alice.pem'}", registry=made)
    repo = hub.repos["model", "alice/gen0"]
    tree = dict(repo.commits[repo.branches["main"]].tree)
    hub.add_commit(repo, "main", {**tree, "evil.py": Entry(hub.put_git(b"import os"), 9)}, "more", "", "alice")
    with pytest.raises(IntegrityError, match=r"'evil\.py' of alice/gen0@.* was added after it was signed"):
        api.pull("alice/gen0", require_signature=f"key:{keys / 'alice.pub'}", registry=registry)
    assert kept(registry) == {}
    assert not any("model.safetensors" in call for call in hub.calls() if "GET" in call)


def test_a_dry_run_signs_nothing(cli: Cli, made: Registry, keys: Path, tmp_path: Path) -> None:
    ran = cli(
        "push", "gen0", "--to", "out", "--sign", f"key:{keys / 'alice.pem'}", "--dry-run", "--registry", made.root
    )
    assert ran.code == 0, ran.err
    assert not (tmp_path / "out").exists()
