-- Roles are shared by all databases of a server. Another database may have created the role already, or may be creating
-- it at the same time.
DO $$
BEGIN
  IF pg_catalog.to_regrole('message_store') IS NULL THEN
    CREATE ROLE message_store LOGIN;
  END IF;
EXCEPTION
  WHEN duplicate_object OR unique_violation THEN
    NULL;
  WHEN insufficient_privilege THEN
    RAISE WARNING 'the role message_store was not created, because % may not create roles', current_user;
END
$$
