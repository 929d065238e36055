-- Keep the role if it has members other than the current user, or if it owns objects or has privileges in this or another
-- database.
DO $$
BEGIN
  IF EXISTS (
    SELECT FROM pg_catalog.pg_auth_members
    WHERE roleid = pg_catalog.to_regrole('message_store')
      AND member <> (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = current_user)
  ) THEN
    RETURN;
  END IF;
  DROP ROLE IF EXISTS message_store;
EXCEPTION
  WHEN dependent_objects_still_exist OR object_in_use OR insufficient_privilege THEN
    NULL;
END
$$
