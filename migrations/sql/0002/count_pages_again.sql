ALTER FUNCTION message_store.get_category_messages(varchar, bigint, bigint, varchar, bigint, bigint, varchar)
  RESET random_page_cost
  RESET seq_page_cost
