-- One row for each thing that a customer of the sample shop did: an order, or a visit. Which columns are the event's id,
-- profile, name and time is said in edgeprofile.toml; all the others are its parameters, and a NULL one is left out.

SELECT
    'order-' || order_id AS event_id,
    CAST(customer_id AS VARCHAR) AS profile_id,
    'order_placed' AS event_name,
    ordered_at AS event_time,
    order_id,
    amount,
    status,
    channel,
    NULL AS product,
    NULL AS category,
    NULL AS price,
    NULL AS device,
    NULL AS details
FROM orders

UNION ALL

SELECT
    'visit-' || visit_id,
    CAST(customer_id AS VARCHAR),
    action,
    visited_at,
    NULL,
    NULL,
    NULL,
    'web',
    products.name,
    category,
    price,
    device,
    details
FROM visits
LEFT JOIN products USING (product_id)
