"""Procedures that a person runs on real machines. They never import the lab.

| procedure | started by | what it does |
|---|---|---|
| `init` | `minipc init` | asks, looks at new machines, and writes the files of production |
| `up` | `minipc up` | does everything up to the first request of a user, step by step |
| `doctor` | `minipc doctor` | checks what this controller needs |
| `preflight` | `minipc preflight` | checks that everything that a rebuild needs is available |
| `adopt` | `minipc adopt` | enrols a machine: pins its host key and identity |
| `apply` | `minipc apply`, `verify` | converges and verifies a machine |
| `cluster_reset` | `minipc cluster reset` | makes a corrupt cluster again, without touching data |
| `drift` | `minipc drift` | plans, and publishes the result as metrics |
| `digest` | prints the weekly summary |
| `alert_test` | sends a message through each channel of the alerts |
| `status` | `minipc status`, `triage` | answers the questions of `checks.yaml` |
| `audit` | `minipc audit` | lists all credentials: rights, places, renewal |
| `backup` | `minipc backup` | takes backups now; removes old ones |
| `storage_box` | `minipc backup key`, `host-keys`; preflight | shows and checks the storage box with the backups |
| `restore_drill` | `minipc drill` | restores a backup next to the live database |
| `rebuild` | `minipc rebuild` | turns a blank machine into the lost one |
| `lost` | `minipc stolen`, `laptop-lost` | locks out a machine or laptop in other hands, renews what it knew |
| `disk_encryption` | `minipc disk unlock`, `prepare`, image | unlocks an encrypted disk, has the TPM unlock it |
| `restored_data` | rebuild | counts what was restored, and refuses data that is too old |
| `release` | `minipc release`, `trace` | releases a version of the service, or rolls back |
| `service_import` | `minipc service import` | moves the data of a service in, and compares both sides |
| `service_remove` | `minipc service remove` | shows or deletes the data of a service that is gone |
| `argocd_sync` | `minipc argocd sync` | applies what the deploy repository says about ArgoCD itself |
| `dns_cutover` | `minipc dns` | moves the public name |
| `runbook` | `minipc runbook` | renders docs/runbook.md |

| helper | used by | what it does |
|---|---|---|
| `init_questions`, `init_files` | init | has the questions; writes files without losing edits |
| `phases` | rebuild, faults, runbook | lists the phases of a rebuild |
| `release_steps` | release, gitops | migrates, tries a new version, switches to it, checks it |
| `release_trace` | release | finds out which commit a pod runs |
| `gitops` | rehearse, rebuild | fills the deploy repository and makes the first release |
| `deploy_repository` | up, rehearse, preflight | creates the deploy repository and its first commit |
| `vpn_clients` | up, `minipc vpn` | adds and revokes VPN clients |
| `vpn_bypass` | rebuild, apply | reports operator ports that answer outside the VPN |
| `bundle_metrics` | apply, `minipc bundle check` | publishes the age of the break-glass bundle |

Data: `checks.yaml` (the operator's questions), `log_queries.yaml` (saved log queries).
"""
