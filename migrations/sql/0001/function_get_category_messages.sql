-- The query compares (category, global_position) as one row value, so that PostgreSQL can use only messages_category. If
-- it could choose, it would use the primary key for a category with most of the store's messages. A reader at the end of
-- its category would then go through all later messages of other categories.
-- For the members of a consumer group the two columns are compared separately, since the index of a consumer group has
-- the member between them.
-- The page costs are almost 0, so that PostgreSQL uses the index with the fewest rows. With the default costs it expects
-- to fetch a page for each row. It does not know that both indexes go through the table in order.
-- A plan is kept for the next pages. One that reads a table of a few messages as a whole would be kept for a large one.
-- Before PostgreSQL 18, a condition that must read a table as a whole then seems so expensive that it would be compiled.
CREATE OR REPLACE FUNCTION message_store.get_category_messages(
  category varchar,
  "position" bigint DEFAULT 1,
  batch_size bigint DEFAULT 1000,
  correlation varchar DEFAULT NULL,
  consumer_group_member bigint DEFAULT NULL,
  consumer_group_size bigint DEFAULT NULL,
  condition varchar DEFAULT NULL
)
RETURNS SETOF message_store.message
LANGUAGE plpgsql
SET random_page_cost = 0.01
SET seq_page_cost = 0.01
SET enable_seqscan = off
SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
  query pg_catalog.text :=
    'SELECT id::varchar, stream_name::varchar, type::varchar, "position", global_position,'
    ' data::varchar, metadata::varchar, "time"'
    ' FROM message_store.messages WHERE ';
  in_category pg_catalog.text :=
    '(message_store.category(stream_name), global_position) OPERATOR(pg_catalog.>=) ($1, $2)'
    ' AND (message_store.category(stream_name), global_position) OPERATOR(pg_catalog.<=) ($1, 9223372036854775807)';
  in_order pg_catalog.text := 'message_store.category(stream_name), global_position';
  also pg_catalog.text := '';
  first_position bigint := COALESCE(get_category_messages."position", 1);
  row_limit bigint := COALESCE(get_category_messages.batch_size, 1000);
  member bigint := get_category_messages.consumer_group_member;
  size bigint := get_category_messages.consumer_group_size;
  flaw pg_catalog.text;
  prepared pg_catalog.text;
  execution pg_catalog.text;
  setting pg_catalog.text;
  debugging boolean := pg_catalog.current_setting('message_store.debug', true) OPERATOR(pg_catalog.=) 'on'
    OR pg_catalog.current_setting('message_store.debug_get', true) OPERATOR(pg_catalog.=) 'on';
BEGIN
  IF NOT message_store.is_category(get_category_messages.category) THEN
    RAISE EXCEPTION 'Must be a category: %', get_category_messages.category;
  END IF;

  IF pg_catalog.num_nonnulls(get_category_messages.correlation, member, size, get_category_messages.condition)
      OPERATOR(pg_catalog.=) 0
    AND debugging IS NOT TRUE
  THEN
    -- The same query as below. PostgreSQL caches the plan of a static query, which saves a third of the time of a short read.
    RETURN QUERY
      SELECT m.id::varchar, m.stream_name::varchar, m.type::varchar, m."position", m.global_position,
        m.data::varchar, m.metadata::varchar, m."time"
      FROM message_store.messages AS m
      WHERE (message_store.category(m.stream_name), m.global_position)
          OPERATOR(pg_catalog.>=) (get_category_messages.category, first_position)
        AND (message_store.category(m.stream_name), m.global_position)
          OPERATOR(pg_catalog.<=) (get_category_messages.category, 9223372036854775807)
      ORDER BY message_store.category(m.stream_name), m.global_position
      LIMIT CASE WHEN row_limit OPERATOR(pg_catalog.<>) -1 THEN row_limit END;
    RETURN;
  END IF;

  IF get_category_messages.correlation IS NOT NULL THEN
    IF NOT message_store.is_category(get_category_messages.correlation) THEN
      RAISE EXCEPTION 'Correlation must be a category (Correlation: %)', get_category_messages.correlation;
    END IF;
    also := ' AND message_store.category(metadata OPERATOR(pg_catalog.->>) ''correlationStreamName'') OPERATOR(pg_catalog.=) $4';
  END IF;

  IF member IS NOT NULL OR size IS NOT NULL THEN
    flaw := CASE
      WHEN member IS NULL OR size IS NULL THEN 'Consumer group member and size must be specified'
      WHEN size OPERATOR(pg_catalog.<) 1 THEN 'Consumer group size must not be less than 1'
      WHEN member OPERATOR(pg_catalog.<) 0 THEN 'Consumer group member must not be less than 0'
      WHEN member OPERATOR(pg_catalog.>=) size THEN 'Consumer group member must be less than the group size'
    END;
    IF flaw IS NOT NULL THEN
      RAISE EXCEPTION '% (Consumer Group Member: %, Consumer Group Size: %)', flaw, member, size;
    END IF;
    in_category := 'message_store.category(stream_name) OPERATOR(pg_catalog.=) $1 AND global_position OPERATOR(pg_catalog.>=) $2';
    in_order := 'global_position';
    also := pg_catalog.concat(also, ' AND pg_catalog.mod(OPERATOR(pg_catalog.@) message_store.hash_64(message_store.cardinal_id(stream_name)), ', size, '::smallint::bigint) OPERATOR(pg_catalog.=) $5');
  END IF;

  IF get_category_messages.condition IS NOT NULL THEN
    -- If the setting was set locally in an earlier transaction, its value is now ''.
    setting := COALESCE(pg_catalog.current_setting('message_store.sql_condition', true), '');
    IF setting OPERATOR(pg_catalog.=) '' OR setting OPERATOR(pg_catalog.=) 'off' THEN
      RAISE EXCEPTION 'Retrieval with SQL condition is not activated';
    END IF;
    also := pg_catalog.concat(also, ' AND (', get_category_messages.condition, ')');
  END IF;

  -- The line break is for a condition that ends with a comment.
  query := pg_catalog.concat(query, in_category, also, E'\n ORDER BY ', in_order, ' LIMIT $3');

  IF debugging THEN
    RAISE NOTICE 'get_category_messages(category => %, position => %, batch_size => %, correlation => %, consumer_group_member => %, consumer_group_size => %, condition => %): %',
      get_category_messages.category, first_position, row_limit, get_category_messages.correlation, member, size,
      get_category_messages.condition, query;
  END IF;

  IF get_category_messages.condition IS NOT NULL THEN
    RETURN QUERY EXECUTE query
      USING
        get_category_messages.category,
        first_position,
        CASE WHEN row_limit OPERATOR(pg_catalog.<>) -1 THEN row_limit END,
        get_category_messages.correlation,
        member,
        -- Not in the query. It is an error before the query is parsed, whatever the condition is.
        size::smallint;
    RETURN;
  END IF;

  -- PostgreSQL would plan the query for each page, which takes longer than to read a short one. So the session prepares it.
  -- It is named by its text, so that no session executes another query than that of this function.
  prepared := pg_catalog.concat('message_store_', pg_catalog.md5(query));
  execution := pg_catalog.format(
    'EXECUTE %s (%L, %L, %L, %L, %L)',
    prepared,
    get_category_messages.category,
    first_position,
    CASE WHEN row_limit OPERATOR(pg_catalog.<>) -1 THEN row_limit END,
    get_category_messages.correlation,
    member
  );
  BEGIN
    RETURN QUERY EXECUTE execution;
  EXCEPTION
    -- If nothing of that name is prepared, or no longer, PostgreSQL says that EXECUTE does not return rows.
    WHEN syntax_error THEN
      EXECUTE pg_catalog.concat('PREPARE ', prepared, ' (varchar, bigint, bigint, varchar, bigint) AS ', query);
      RETURN QUERY EXECUTE execution;
  END;
END
$$
