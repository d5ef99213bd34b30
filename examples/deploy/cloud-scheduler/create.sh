#!/bin/sh
# Starts the Flex Template of ../dataflow every 15 minutes, as launch.json says: PROJECT=… REGION=… sh create.sh
# Dataflow never has two active jobs of one name in a region: while one is running, the next is not started. The scheduler's
# account needs roles/dataflow.developer, and roles/iam.serviceAccountUser on the workers' account.
set -eu
cd "$(dirname "$0")"
gcloud scheduler jobs create http llmdo-run \
  --project "$PROJECT" \
  --location "$REGION" \
  --schedule '*/15 * * * *' \
  --time-zone Etc/UTC \
  --uri "https://dataflow.googleapis.com/v1b3/projects/$PROJECT/locations/$REGION/flexTemplates:launch" \
  --http-method POST \
  --headers Content-Type=application/json \
  --message-body-from-file launch.json \
  --oauth-service-account-email "llmdo-scheduler@$PROJECT.iam.gserviceaccount.com" \
  --attempt-deadline 180s
