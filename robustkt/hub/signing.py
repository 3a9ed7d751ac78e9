"""Signatures of the published form by OpenSSF Model Signing: made by `push --sign`, demanded by `pull`."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustkt.errors import IntegrityError, NotFoundError, RobustKTError, UsageError
from robustkt.hub.form import SIGNATURE, File
from robustkt.hub.session import scrubbed
from robustkt.numbers import parse_json

if TYPE_CHECKING:
    from cryptography import x509
    from model_signing.hashing import Config

PASSWORD = "ROBUSTKT_SIGN_PASSWORD"  # names the variable that holds an encrypted key's
TOKEN = "SIGSTORE_IDENTITY_TOKEN"  # as Sigstore's own command line calls it
IGNORED = (SIGNATURE, ".git", ".gitattributes", ".github", ".gitignore")
KINDS = {"key": "a key", "cert": "a certificate", "sigstore": "Sigstore"}
SIGN = "Write --sign key:PRIVATE.pem, --sign cert:CERT.pem,KEY.pem[,CA.pem…] or --sign sigstore."
REQUIRE = (
    "Write --require-signature key:PUBLIC.pem, --require-signature cert:CA.pem[,…] or "
    "--require-signature sigstore:IDENTITY,ISSUER."
)


@dataclass(frozen=True)
class Means:
    """What signs, or whose signature is asked for: `key` with one file, `cert` with several, or `sigstore`."""

    kind: str
    paths: tuple[Path, ...] = ()
    identity: str = ""  # of sigstore, as somebody@example.org
    issuer: str = ""  # of sigstore: who vouches for the identity

    def __str__(self) -> str:
        if self.kind == "sigstore":
            return f"{self.identity} ({self.issuer})" if self.identity else "Sigstore"
        return f"{KINDS[self.kind]} of {', '.join(path.name for path in self.paths)}"


def parse_signer(text: str) -> Means:
    """`key:PRIVATE.pem`, `cert:CERT.pem,KEY.pem[,CA.pem…]` or `sigstore`.

    Raises:
        UsageError: it is none of them, or the library is not installed.
        NotFoundError: there is no such file.
    """
    kind, _, rest = text.partition(":")
    paths = _paths(rest)
    shape = {"key": len(paths) == 1, "cert": len(paths) >= 2, "sigstore": not rest}
    if not shape.get(kind):
        raise UsageError(f"--sign {text[:80]} names nothing to sign with", SIGN)
    _check("--sign", paths)
    return Means(kind, paths)


def parse_requirement(text: str) -> Means:
    """`key:PUBLIC.pem`, `cert:CA.pem[,CA.pem…]` or `sigstore:IDENTITY,ISSUER`.

    Raises:
        UsageError: it is none of them, or the library is not installed.
        NotFoundError: there is no such file.
    """
    kind, _, rest = text.partition(":")
    if kind == "sigstore":
        identity, _, issuer = rest.rpartition(",")
        if identity and issuer.startswith("https://"):
            _check("--require-signature", ())
            return Means(kind, (), identity, issuer)
    paths = _paths(rest)
    if not {"key": len(paths) == 1, "cert": bool(paths)}.get(kind):
        raise UsageError(f"--require-signature {text[:80]} names nobody's signature", REQUIRE)
    _check("--require-signature", paths)
    return Means(kind, paths)


def sign(files: Mapping[str, File], name: str, means: Means) -> File:
    """The signature over all `files` of a publication; their hashes are taken as they are known, nothing is read.

    Raises:
        RobustKTError: a key or certificate that cannot sign, or Sigstore refuses or is out of reach.
    """
    from model_signing import signing

    config = signing.Config()
    if means.kind == "sigstore":
        _sign_in(config)
    else:
        _take_key(config, means)
    config.set_hashing_config(_known({path: file.hash for path, file in files.items()}, name))
    with tempfile.TemporaryDirectory(prefix="robustkt-") as place:
        out = Path(place) / SIGNATURE
        try:
            config.sign(place, out)
        except Exception as error:  # of an identity provider or of Sigstore, whatever their clients raise
            if means.kind != "sigstore":
                raise
            raise _sigstore_refuses(error) from None
        return File.of(out.read_bytes())


def covers(signature: bytes, hashes: Mapping[str, str]) -> bool:
    """Whether a signature, genuine or not, is one over just these files."""
    try:
        return _signed(signature) == hashes
    except IntegrityError:
        return False


def same_signer(signature: bytes, hashes: Mapping[str, str], means: Means) -> bool:
    """Whether `sign` with these means made a signature over these files already, so that no other one is needed."""
    if means.kind == "sigstore" or not covers(signature, hashes):
        return False
    with tempfile.TemporaryDirectory(prefix="robustkt-") as place:
        mine = means.paths[2:]
        if means.kind == "cert" and not mine:  # without its authority nobody can tell
            return False
        if means.kind == "key":
            mine = (Path(place) / "public.pem",)
            mine[0].write_bytes(_public(means.paths[0]))
        try:
            check(signature, hashes, (), Means(means.kind, mine), "")
        except RobustKTError:
            return False
    return True


def check(
    signature: bytes | None, hashes: Mapping[str, str], others: Collection[str], required: Means, about: str
) -> None:
    """Raise unless `signature` is the one that is `required`, over just these files.

    Args:
        signature: the bytes of model.sig, or None where there is none.
        hashes: of every file that the index names and of the index itself, by path.
        others: files beside these.
        required: whose signature it must be.
        about: what is signed, for messages.

    Raises:
        IntegrityError: no signature, another's, or one of other files.
        RobustKTError: the key or certificate cannot be read, or Sigstore's keys cannot be fetched.
    """
    if signature is None:
        raise IntegrityError(
            f"{about} is not signed: it has no {SIGNATURE}", "Ask its publisher to push it again with --sign."
        )
    kind = _kind(signature)
    if kind != required.kind:
        raise IntegrityError(
            f"{about} is signed with {KINDS.get(kind, 'something else')}, not with {KINDS[required.kind]}",
            "Ask its publisher what it is signed with.",
        )
    config = _verifier(required)
    genuine: list[bool] = []  # the library asks for the files only after the signature itself was found genuine
    config.set_hashing_config(_known(hashes, about, lambda: genuine.append(True)))
    with tempfile.TemporaryDirectory(prefix="robustkt-") as place:
        path = Path(place) / SIGNATURE
        path.write_bytes(signature)
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # where the library warns
                config.verify(place, path)
        except Exception as error:  # the bytes are hostile: whatever their reader raises, they are refused
            if not genuine:
                raise _not_genuine(required, about, error) from None
            _tell_difference(hashes, _signed(signature), about)
            raise IntegrityError(f"{about} is signed in a way that is not known", "Upgrade robustkt.") from None
    if kind == "cert" and not _may_sign(_certificate(signature)):
        what = f"{about} is signed with a certificate that is not for signing code, but for something else"
        raise IntegrityError(what, "Ask its publisher for one whose extended key usage has codeSigning.")
    if others:
        raise IntegrityError(f"{min(others)!r} of {about} was added after it was signed", "Do not trust it.")


def _known(hashes: Mapping[str, str], name: str, asked: Callable[[], None] = lambda: None) -> Config:
    """A hashing of files that are hashed already; `asked` is called when the library wants them."""
    from model_signing import hashing, manifest
    from model_signing._hashing.hashing import Digest

    class Known(hashing.Config):
        def hash(self, model_path: Any, *, files_to_hash: Any = None) -> manifest.Manifest:
            asked()
            way = {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": list(IGNORED)}
            kind = manifest.SerializationType.from_args(way)
            items = [kind.new_item(p, Digest("sha256", bytes.fromhex(h[7:]))) for p, h in sorted(hashes.items())]
            return manifest.Manifest(name, items, kind)

    return Known()


def _verifier(required: Means) -> Any:
    from model_signing import verifying

    config = verifying.Config()
    try:
        if required.kind == "key":
            return config.use_elliptic_key_verifier(public_key=required.paths[0])
        if required.kind == "cert":
            return config.use_certificate_verifier(certificate_chain=required.paths)
    except Exception as error:  # of several libraries, each with its own
        wanted = "an elliptic public key (P-256, P-384, P-521)" if required.kind == "key" else "certificates"
        what = f"{required.paths[0]} holds no {wanted.removeprefix('an ')} in PEM: {scrubbed(error)}"
        raise UsageError(what, REQUIRE) from None
    try:
        return config.use_sigstore_verifier(identity=required.identity, oidc_issuer=required.issuer)
    except Exception as error:  # no network, or none of the keys that it answers with is trusted
        raise _sigstore_refuses(error) from None


def _not_genuine(required: Means, about: str, error: Exception) -> IntegrityError:
    said = str(error)
    if required.kind == "key" and said.startswith("Key mismatch"):
        what = f"{about} is signed with another key than {required.paths[0].name}"
    elif required.kind == "key":
        what = f"the signature of {about} is damaged or forged: {required.paths[0].name} did not make it"
    else:
        what = f"the signature of {about} is not one by {required}: {scrubbed(said) or type(error).__name__}"
    return IntegrityError(what, "Do not trust it, unless its publisher tells you of another key.")


def _tell_difference(hashes: Mapping[str, str], signed: Mapping[str, str], about: str) -> None:
    """Raise about the first file that is not as it was signed; the index, which names the others, comes last."""
    changed = sorted((path.endswith("robustkt.json"), path) for path in hashes if hashes[path] != signed.get(path))
    for path in sorted(set(signed) - set(hashes)):
        raise IntegrityError(f"{path} of {about} was signed and is missing", "Do not trust it.")
    for _, path in changed:
        how = "has changed since it was signed" if path in signed else "was added after it was signed"
        raise IntegrityError(f"{path} of {about} {how}", "Do not trust it.")


def _bundle(signature: bytes) -> dict[str, Any]:
    found = parse_json(signature, SIGNATURE)
    if not isinstance(found, dict) or not isinstance(found.get("verificationMaterial"), dict):
        raise IntegrityError(f"{SIGNATURE} is no Sigstore bundle", "Do not trust it.")
    return found


def _kind(signature: bytes) -> str:
    material = _bundle(signature)["verificationMaterial"]
    names = {"publicKey": "key", "x509CertificateChain": "cert", "certificate": "sigstore"}
    return next((kind for name, kind in names.items() if name in material), "")


def _signed(signature: bytes) -> dict[str, str]:
    """The hashes that a signature is over, by path; whether it is genuine is another question."""
    try:
        payload = json.loads(base64.b64decode(_bundle(signature)["dsseEnvelope"]["payload"], validate=True))
        resources = payload["predicate"]["resources"]
        return {str(one["name"]): f"{one['algorithm']}:{one['digest']}" for one in resources}
    except (KeyError, TypeError, ValueError, RecursionError):
        raise IntegrityError(f"{SIGNATURE} is not a signature of a model", "Do not trust it.") from None


def _certificate(signature: bytes) -> x509.Certificate:
    """The one that a signature was made with; of a signature that was found genuine."""
    from cryptography import x509

    chain = _bundle(signature)["verificationMaterial"]["x509CertificateChain"]["certificates"]
    return x509.load_der_x509_certificate(base64.b64decode(chain[0]["rawBytes"]))


def _may_sign(certificate: x509.Certificate) -> bool:
    """Whether a certificate that is for something in particular, as a server's is, is for signing code."""
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    try:
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return True
    return ExtendedKeyUsageOID.CODE_SIGNING in usage or ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE in usage


def _paths(text: str) -> tuple[Path, ...]:
    return tuple(Path(part).expanduser() for part in text.split(",") if part)


def _check(option: str, paths: Collection[Path]) -> None:
    """Whether the library and the files are there."""
    try:
        import model_signing.signing
        import model_signing.verifying  # noqa: F401
    except ImportError:
        raise UsageError(f"{option} needs model-signing", "Run pip install 'robustkt[sign]'.") from None
    for path in paths:
        if not path.is_file():
            raise NotFoundError(f"there is no file {path}", f"Look at the name in {option}.")


def _load_key(path: Path) -> tuple[Any, bytes | None]:
    """A private key, and the password that it is encrypted with."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    password: bytes | None = None
    try:
        try:
            key = load_pem_private_key(path.read_bytes(), None)
        except TypeError:
            password = os.environ.get(PASSWORD, "").encode()
            if not password:
                raise UsageError(f"the key {path.name} is encrypted", f"Set {PASSWORD} to its password.") from None
            key = load_pem_private_key(path.read_bytes(), password)
    except (ValueError, UnsupportedAlgorithm):
        told = f", or {PASSWORD} is not its password" if password else ""
        raise UsageError(f"{path.name} holds no private key in PEM{told}", SIGN) from None
    if not isinstance(key, EllipticCurvePrivateKey) or key.curve.name not in ("secp256r1", "secp384r1", "secp521r1"):
        make = "openssl ecparam -name prime256v1 -genkey -noout -out private.pem"
        raise UsageError(f"the key {path.name} is not on a curve P-256, P-384 or P-521", f"Make one: {make}")
    return key, password


def _public(private: Path) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    found: bytes = _load_key(private)[0].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return found


def _take_key(config: Any, means: Means) -> None:
    """Sign with a key, or with the key of a certificate."""
    if means.kind == "key":
        (path,) = means.paths
        _, password = _load_key(path)  # the library hands it on to one that takes bytes
        config.use_elliptic_key_signer(private_key=path, password=password)
        return
    from cryptography import x509

    certificate, path, *chain = means.paths
    _, password = _load_key(path)
    if password is not None:
        raise UsageError(f"the key {path.name} of a certificate may not be encrypted", "Decrypt it: openssl ec -in KEY")
    try:
        config.use_certificate_signer(
            private_key=path, signing_certificate=certificate, certificate_chain=chain or [certificate]
        )  # the library takes no empty chain
        may_sign = _may_sign(x509.load_pem_x509_certificate(certificate.read_bytes()))
    except ValueError as error:
        what = f"cannot sign with {means}: {scrubbed(error)}"
        raise UsageError(what, "Give the certificate of that key, in PEM: cert:CERT.pem,KEY.pem.") from None
    if not may_sign:
        what = f"the certificate {certificate.name} is not for signing code, but for something else"
        raise UsageError(what, "Ask its authority for one whose extended key usage has codeSigning, or for any use.")


def _sign_in(config: Any) -> None:
    """Sign as whoever a CI job's token, or a log-in by browser, says that this is."""
    from sigstore.oidc import detect_credential

    try:
        token = os.environ.get(TOKEN) or detect_credential("sigstore")
    except Exception as error:  # of whichever CI this is
        raise _sigstore_refuses(error) from None
    if not token and not sys.stdin.isatty():
        raise RobustKTError(
            "there is nobody to sign as: no token of a CI job, and no terminal to log in from",
            f"Set {TOKEN}, let the CI job write id tokens, or sign with --sign key:PRIVATE.pem.",
        )
    try:
        config.use_sigstore_signer(identity_token=token or None)
    except Exception as error:  # Sigstore's list of servers comes over the network
        raise _sigstore_refuses(error) from None


def _sigstore_refuses(error: Exception) -> RobustKTError:
    said = scrubbed(error) or type(error).__name__
    return RobustKTError(
        f"Sigstore refuses, or cannot be reached: {said}",
        "Check the network and the identity, or use a key: key:PRIVATE.pem to sign, key:PUBLIC.pem to require.",
    )
