-- One row for each customer of the sample shop: what `edgeprofile` serves. Which of the columns are identifiers,
-- metrics and audiences is said in edgeprofile.toml; all the others are attributes.

WITH purchases AS (
    -- What was cancelled or sent back earned nothing, so it counts for no metric. It is news all the same:
    -- last_activity_at takes in every order.
    SELECT
        customer_id,
        count(*) FILTER (status NOT IN ('cancelled', 'returned')) AS orders,
        sum(amount) FILTER (status NOT IN ('cancelled', 'returned')) AS lifetime_value,
        max(ordered_at) FILTER (status NOT IN ('cancelled', 'returned')) AS last_order_at,
        max(ordered_at) AS last_activity_at
    FROM orders
    GROUP BY customer_id
),

customer_metrics AS (
    -- A customer without purchases has spent 0 in 0 orders, but has no average and no last order: those are NULL
    -- here and left out of the answer. Days are whole calendar days (UTC) before the export, never before now(),
    -- so that unchanged tables give an unchanged snapshot.
    SELECT
        customers.*,
        CAST(coalesce(lifetime_value, 0) AS DECIMAL(12, 2)) AS lifetime_value,
        coalesce(orders, 0) AS orders,
        round(CAST(lifetime_value AS DOUBLE) / nullif(orders, 0), 2) AS average_order_value,
        date_diff('day', CAST(last_order_at AS DATE), CAST(exported_at AS DATE)) AS days_since_last_order,
        date_diff('day', CAST(signed_up_at AS DATE), CAST(exported_at AS DATE)) AS days_since_sign_up,
        last_order_at,
        last_activity_at
    FROM customers
    CROSS JOIN export
    LEFT JOIN purchases USING (customer_id)
)

SELECT
    -- Identifiers. The primary one is text, as callers send it.
    CAST(customer_id AS VARCHAR) AS profile_id,
    email,
    device_id AS anonymous_id,
    phone,

    -- Attributes.
    first_name,
    last_name,
    language,
    country,
    address.city AS city,
    birthday,
    signed_up_at,
    last_order_at,
    loyalty_tier AS tier,
    marketing_consent,
    preferences,
    favourite_categories,
    address,

    -- Metrics.
    lifetime_value,
    orders,
    average_order_value,
    days_since_last_order,

    -- Audiences. Each is true or false for everyone: a NULL on the way (no order yet, never asked for consent)
    -- means that the customer is not in it.
    lifetime_value >= 1000 AS high_spenders,
    coalesce(orders >= 2 AND days_since_last_order > 180, false) AS churn_risk,
    coalesce(marketing_consent, false) AND email IS NOT NULL AS newsletter,
    loyalty_tier IN ('gold', 'platinum') AND coalesce(days_since_last_order <= 365, false) AS vip,
    days_since_sign_up <= 30 AS new_customers,

    greatest(updated_at, last_activity_at) AS updated_at
FROM customer_metrics
