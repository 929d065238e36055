-- PostgreSQL does not know that within a category the index messages_category leads through the table in order. It expects
-- a page to be fetched for each row, and rather goes through all categories' messages by the primary key, throwing away
-- what is not asked for. With pages at next to nothing, it takes the index that meets the fewest rows.
ALTER FUNCTION message_store.get_category_messages(varchar, bigint, bigint, varchar, bigint, bigint, varchar)
  SET random_page_cost = 0.01
  SET seq_page_cost = 0.01
