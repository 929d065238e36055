-- Each query is a JSON object with a category, the global position to begin at (by default 1), and perhaps types and tags.
-- A message matches a query if it has one of the types and all of the tags, which are a list in its metadata.
-- The values are in the text of the query, so that PostgreSQL plans for them. But it does not know how many messages have a tag.
-- So if there is an index on tags, the first 500 messages of the category from that position on tell whether to use it: not
-- if there are no more, and not if many of them have the tags and there is a limit, which is then soon reached. OFFSET 0 hides
-- the limit from PostgreSQL, and CASE hides the tags from the index. Without the index, the category is read in order, up to
-- the limit, as in get_category_messages. The page costs are almost 0 for the same reason as there.
CREATE OR REPLACE FUNCTION message_store.get_query_messages(
  queries jsonb,
  batch_size bigint DEFAULT 1000
)
RETURNS SETOF message_store.message
LANGUAGE plpgsql
SET random_page_cost = 0.01
SET seq_page_cost = 0.01
AS $$
DECLARE
  row_limit bigint := COALESCE(get_query_messages.batch_size, 1000);
  tags_are_indexed boolean := pg_catalog.to_regclass('message_store.messages_tags') IS NOT NULL;
  one_query jsonb;
  category pg_catalog.text;
  first_position bigint;
  types jsonb;
  tags jsonb;
  by_tags boolean;
  selected pg_catalog.text;
  matching pg_catalog.text;
BEGIN
  FOR one_query IN SELECT pg_catalog.jsonb_array_elements(get_query_messages.queries) LOOP
    category := one_query OPERATOR(pg_catalog.->>) 'category';
    first_position := COALESCE((one_query OPERATOR(pg_catalog.->>) 'position')::bigint, 1);
    types := NULLIF(one_query OPERATOR(pg_catalog.->) 'types', '[]');
    tags := NULLIF(one_query OPERATOR(pg_catalog.->) 'tags', '[]');

    IF category IS NULL OR NOT message_store.is_category(category) THEN
      RAISE EXCEPTION 'Must be a category: %', category;
    END IF;

    by_tags := false;
    IF tags IS NOT NULL AND tags_are_indexed THEN
      SELECT pg_catalog.count(*) OPERATOR(pg_catalog.=) 500
        AND (
          row_limit OPERATOR(pg_catalog.=) -1
          OR pg_catalog.count(*) FILTER (
            WHERE near.metadata OPERATOR(pg_catalog.->) 'tags' OPERATOR(pg_catalog.@>) tags
          ) OPERATOR(pg_catalog.<) 25
        )
      INTO by_tags
      FROM (
        SELECT m.metadata
        FROM message_store.messages AS m
        WHERE (message_store.category(m.stream_name), m.global_position) OPERATOR(pg_catalog.>=) (category, first_position)
          AND (message_store.category(m.stream_name), m.global_position)
          OPERATOR(pg_catalog.<=) (category, 9223372036854775807)
        ORDER BY message_store.category(m.stream_name), m.global_position
        LIMIT 500
      ) AS near;
    END IF;

    selected := pg_catalog.concat(
      'SELECT * FROM message_store.messages AS m WHERE ',
      CASE WHEN types IS NOT NULL THEN pg_catalog.format('%L::jsonb OPERATOR(pg_catalog.?) m.type AND ', types) END,
      CASE WHEN tags IS NOT NULL THEN
        pg_catalog.format(
          CASE WHEN by_tags THEN '%s AND ' ELSE 'CASE WHEN %s THEN true END AND ' END,
          pg_catalog.format('m.metadata OPERATOR(pg_catalog.->) ''tags'' OPERATOR(pg_catalog.@>) %L::jsonb', tags)
        )
      END,
      CASE WHEN by_tags THEN
        pg_catalog.format(
          'message_store.category(m.stream_name) OPERATOR(pg_catalog.=) %1$L'
          ' AND m.global_position OPERATOR(pg_catalog.>=) %2$L::bigint OFFSET 0',
          category, first_position
        )
      ELSE
        pg_catalog.format(
          '(message_store.category(m.stream_name), m.global_position) OPERATOR(pg_catalog.>=) (%1$L, %2$L::bigint)'
          ' AND (message_store.category(m.stream_name), m.global_position)'
          ' OPERATOR(pg_catalog.<=) (%1$L, 9223372036854775807)'
          ' ORDER BY message_store.category(m.stream_name), m.global_position LIMIT $1',
          category, first_position
        )
      END
    );
    matching := pg_catalog.concat_ws(' UNION ALL ', matching, pg_catalog.format('(%s)', selected));
  END LOOP;

  IF matching IS NULL THEN
    RAISE EXCEPTION 'Must have at least one query: %', get_query_messages.queries;
  END IF;

  -- A message may match several queries.
  RETURN QUERY EXECUTE pg_catalog.concat(
    'SELECT DISTINCT ON (global_position) id::varchar, stream_name::varchar, type::varchar, "position", global_position,',
    ' data::varchar, metadata::varchar, "time"',
    ' FROM (', matching, ') AS matching ORDER BY global_position LIMIT $1'
  )
  USING CASE WHEN row_limit OPERATOR(pg_catalog.<>) -1 THEN row_limit END;
END
$$
