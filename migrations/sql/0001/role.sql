-- Roles belong to the cluster: another of its databases may have this one already, or be making it at this moment.
DO $$
BEGIN
  IF pg_catalog.to_regrole('message_store') IS NULL THEN
    CREATE ROLE message_store LOGIN;
  END IF;
EXCEPTION
  WHEN duplicate_object OR unique_violation THEN
    NULL;
  WHEN insufficient_privilege THEN
    RAISE WARNING 'role message_store was not created: % may not create roles', current_user;
END
$$
