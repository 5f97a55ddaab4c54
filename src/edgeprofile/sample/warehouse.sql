-- A shop's warehouse at any size, for the demonstration, the tests and the benchmarks. DuckDB 2.
--
--     SET VARIABLE profiles = 3000;      -- how many customers, at least 1
--
-- Everything is drawn from the hash of a word and a key, so the same DuckDB makes the same rows on every machine,
-- whatever the number of threads, and a customer is the same one in a small shop and in a large one. All of it is
-- made up: email addresses are under example.com, .org and .net (RFC 2606), telephone numbers under +999, a country
-- code that no country has. Times are UTC, money is euro.

-- A number from 0 to choices - 1. It is hashed twice because hash(word, key) only combines the two by an exclusive
-- or: draws of one key by two words would go hand in hand. Both sides of % are unsigned, or else DuckDB would reckon
-- in 128 bits, which takes thirty times as long.
CREATE TEMP MACRO draw(word, key, choices) AS CAST(hash(hash(word, key)) % CAST(choices AS UBIGINT) AS BIGINT);
CREATE TEMP MACRO pick(list, word, key) AS list[1 + draw(word, key, len(list))];


-- When this copy of the shop's tables was taken. The model counts days back from here and not from now(),
-- so that the same tables always give the same profiles.
CREATE TABLE export AS SELECT TIMESTAMP '2025-06-11 00:00:00' AS exported_at;


-- Who shops here: of a hundred customers, `share` are of this language and country.
CREATE TEMP TABLE locales AS
FROM (VALUES
    (12, 'en', 'GB',
        ['Amelia', 'Oliver', 'Isla', 'Noah', 'Zoë', 'Freya', 'Arthur', 'Siân', 'Callum', 'Niamh'],
        ['Smith', 'Jones', 'Taylor', 'O''Brien', 'Okafor', 'MacLeod', 'Patel', 'Llewellyn', 'Brontë', 'Ashworth'],
        ['London', 'Leeds', 'Cardiff', 'Glasgow', 'Bristol'], ['Mill Lane', 'High Street', 'Station Road']),
    (10, 'en', 'US',
        ['Emma', 'Liam', 'Ava', 'Mason', 'Renée', 'Jayden', 'Chloe', 'Mateo', 'Harper', 'D''Angelo'],
        ['Johnson', 'Williams', 'Garcia', 'Nguyen', 'Washington', 'Kowalski', 'Muñoz', 'Carter', 'Young', 'Reyes'],
        ['Portland', 'Austin', 'Chicago', 'Santa Fe', 'Boston'], ['Maple Avenue', 'Oak Street', '2nd Street']),
    (11, 'fr', 'FR',
        ['Chloé', 'Léa', 'Théo', 'Inès', 'Zoé', 'François', 'Anaïs', 'Jean-Noël', 'Maëlle', 'Gaël'],
        ['Lefèvre', 'Dubois', 'Moreau', 'Garçon', 'Bérenger', 'N''Diaye', 'Château', 'Noël', 'Perrin', 'Lacoste'],
        ['Paris', 'Lyon', 'Orléans', 'Saint-Étienne', 'Nîmes'], ['rue de l''Église', 'rue des Lilas', 'quai du Chêne']),
    (10, 'de', 'DE',
        ['Jürgen', 'Anneliese', 'Björn', 'Käthe', 'Lukas', 'Sören', 'Mia', 'Götz', 'Jasmin', 'Bärbel'],
        ['Müller', 'Schröder', 'Weiß', 'Jäger', 'Groß', 'Köhler', 'Yılmaz', 'Vogt', 'Böhm', 'Schäfer'],
        ['Köln', 'München', 'Düsseldorf', 'Leipzig', 'Würzburg'], ['Gartenstraße', 'Lindenweg', 'Am Mühlbach']),
    (7, 'es', 'ES',
        ['José', 'Lucía', 'Begoña', 'Ángel', 'Martín', 'Sofía', 'Íñigo', 'Rocío', 'Álvaro', 'Inés'],
        ['García Núñez', 'Peña', 'Ibáñez', 'Martínez', 'Muñoz Vidal', 'Gómez', 'Ordóñez', 'Vázquez', 'León', 'Sáez'],
        ['Málaga', 'Córdoba', 'A Coruña', 'Cáceres', 'Logroño'], ['calle Mayor', 'paseo del Río', 'calle del Ángel']),
    (5, 'pl', 'PL',
        ['Łukasz', 'Małgorzata', 'Zdzisław', 'Żaneta', 'Jędrzej', 'Agnieszka', 'Bożena', 'Wojciech', 'Święta', 'Ola'],
        ['Wiśniewska', 'Wójcik', 'Kamiński', 'Dąbrowska', 'Gąsior', 'Błaszczyk', 'Źrebiec', 'Nowak', 'Pająk', 'Żurek'],
        ['Łódź', 'Kraków', 'Poznań', 'Gdańsk', 'Białystok'], ['ulica Długa', 'ulica Świerkowa', 'aleja Róż']),
    (4, 'tr', 'TR',
        ['Ayşe', 'Çağlar', 'Gülşen', 'İbrahim', 'Işıl', 'Ömer', 'Şule', 'Uğur', 'Zeynep', 'Yiğit'],
        ['Yılmaz', 'Öztürk', 'Çelik', 'Şahin', 'Aydın', 'Doğan', 'Kılıç', 'Güneş', 'Işık', 'Koç'],
        ['İstanbul', 'İzmir', 'Eskişehir', 'Muğla', 'Çanakkale'], ['Çınar Sokak', 'Gül Sokak', 'Deniz Caddesi']),
    (4, 'vi', 'VN',
        ['Hương', 'Văn Đức', 'Ngọc Ánh', 'Quốc Bảo', 'Thùy Dương', 'Phước', 'Mỹ Lệ', 'Tuấn Kiệt', 'Thủy', 'Nguyên'],
        ['Nguyễn', 'Trần', 'Phạm', 'Huỳnh', 'Đặng', 'Vũ', 'Bùi', 'Đỗ', 'Lê', 'Hoàng'],
        ['Hà Nội', 'Đà Nẵng', 'Cần Thơ', 'Huế', 'Hải Phòng'], ['phố Hàng Bông', 'đường Lê Lợi', 'đường Hoa Sữa']),
    (4, 'el', 'GR',
        ['Ελένη', 'Γιώργος', 'Αθηνά', 'Δημήτρης', 'Σοφία', 'Οδυσσέας', 'Μαρία', 'Νίκος', 'Καλλιόπη', 'Θεόδωρος'],
        ['Παππάς', 'Βλάχος', 'Αγγελίδης', 'Οικονόμου', 'Γεωργίου', 'Ξενάκης', 'Ψαράς', 'Μακρής', 'Ρήγας', 'Ζαφείρης'],
        ['Αθήνα', 'Θεσσαλονίκη', 'Πάτρα', 'Ηράκλειο', 'Βόλος'], ['οδός Ερμού', 'οδός Αθηνάς', 'οδός Ελιάς']),
    (4, 'uk', 'UA',
        ['Олена', 'Тарас', 'Ярослава', 'Богдан', 'Юлія', 'Андрій', 'Соломія', 'Їлля', 'Оксана', 'Дмитро'],
        ['Шевченко', 'Коваленко', 'Ткачук', 'Лисенко', 'Мельник', 'Їжакевич', 'Гончар', 'Бойко', 'Савчук', 'Вербицька'],
        ['Київ', 'Львів', 'Одеса', 'Харків', 'Чернівці'], ['вулиця Садова', 'вулиця Лесі Українки', 'площа Ринок']),
    (3, 'bg', 'BG',
        ['Иванка', 'Георги', 'Цветелина', 'Никола', 'Радост', 'Димитър', 'Ваня', 'Пламен', 'Елица', 'Живко'],
        ['Петров', 'Иванова', 'Стоянов', 'Тодорова', 'Щерев', 'Колева', 'Ангелов', 'Маринова', 'Жеков', 'Пенчева'],
        ['София', 'Пловдив', 'Варна', 'Бургас', 'Русе'], ['улица Роза', 'улица Шипка', 'булевард Витоша']),
    (4, 'ar', 'EG',
        ['فاطمة', 'محمد', 'ليلى', 'يوسف', 'نور', 'عمر', 'مريم', 'خالد', 'هدى', 'سلمى'],
        ['الحسيني', 'عبد الله', 'النجار', 'السيد', 'منصور', 'حداد', 'الشريف', 'سليمان', 'البنا', 'زيدان'],
        ['القاهرة', 'الإسكندرية', 'أسوان', 'الأقصر', 'طنطا'], ['شارع النيل', 'شارع الزهور', 'شارع السلام']),
    (3, 'he', 'IL',
        ['נועה', 'איתי', 'תמר', 'יונתן', 'שירה', 'דוד', 'מאיה', 'אורי', 'רחל', 'עומר'],
        ['כהן', 'לוי', 'מזרחי', 'פרץ', 'ביטון', 'אברהם', 'פרידמן', 'שפירא', 'גולן', 'חדד'],
        ['חיפה', 'תל אביב', 'באר שבע', 'נתניה', 'אילת'], ['רחוב הגפן', 'רחוב הרצל', 'רחוב הזית']),
    (6, 'hi', 'IN',
        ['प्रिया', 'आरव', 'अनन्या', 'विक्रम', 'लक्ष्मी', 'रोहित', 'मीरा', 'कृष्ण', 'संध्या', 'ईशान'],
        ['शर्मा', 'वर्मा', 'गुप्ता', 'सिंह', 'मिश्रा', 'त्रिपाठी', 'जोशी', 'कुलकर्णी', 'यादव', 'चौधरी'],
        ['दिल्ली', 'जयपुर', 'लखनऊ', 'भोपाल', 'वाराणसी'], ['गांधी मार्ग', 'स्टेशन रोड', 'कमल नगर']),
    (6, 'zh', 'CN',
        ['伟', '芳', '秀英', '子轩', '梓涵', '浩然', '欣怡', '建国', '雨桐', '思远'],
        ['王', '李', '张', '刘', '陈', '欧阳', '赵', '司马', '周', '吴'],
        ['北京', '上海', '成都', '杭州', '西安'], ['人民路', '中山路', '桂花街']),
    (5, 'ja', 'JP',
        ['さくら', '陽翔', 'ひかり', '蓮', '美咲', 'ケンジ', '結衣', '大輔', 'ミカ', '翔太'],
        ['佐藤', '鈴木', '高橋', '渡邉', '齋藤', '伊藤', '山本', '小林', '佐々木', '五十嵐'],
        ['東京', '京都', '札幌', '福岡', '金沢'], ['本町', '桜通り', 'みどり台']),
    (2, 'ko', 'KR',
        ['지우', '서연', '민준', '하은', '도윤', '수빈', '예준', '은서', '현우', '나래'],
        ['김', '이', '박', '최', '정', '강', '조', '윤', '남궁', '황보'],
        ['서울', '부산', '대구', '전주', '제주'], ['장미로', '한강로', '은행나무길'])
) AS locale(share, language, country, first_names, last_names, cities, streets);

-- One row for each of the hundred shares, so that a single draw finds a customer's locale.
CREATE TEMP TABLE shares AS
SELECT row_number() OVER (ORDER BY country, range) - 1 AS number, locales.*
FROM locales, range(share);


CREATE TABLE products (
    product_id BIGINT NOT NULL,
    name VARCHAR NOT NULL,
    category VARCHAR NOT NULL,
    price DECIMAL(10, 2) NOT NULL
);

INSERT INTO products VALUES
    (1, 'Atlas', 'books', 34.95), (2, 'Cookbook', 'books', 28.50), (3, 'Field Guide', 'books', 19.95),
    (4, 'Mystery', 'books', 9.95), (5, 'Picture Book', 'books', 14.50), (6, 'Poems', 'books', 12.95),
    (7, 'Bulb Box', 'garden', 16.50), (8, 'Bird Table', 'garden', 49.95), (9, 'Hose Reel', 'garden', 64.50),
    (10, 'Secateurs', 'garden', 24.95), (11, 'Trowel', 'garden', 11.95), (12, 'Watering Can', 'garden', 22.50),
    (13, 'Blanket', 'home', 59.95), (14, 'Clock', 'home', 38.50), (15, 'Cushion', 'home', 21.95),
    (16, 'Lamp', 'home', 74.50), (17, 'Mirror', 'home', 89.95), (18, 'Rug', 'home', 139.00),
    (19, 'Bread Knife', 'kitchen', 32.95), (20, 'Casserole', 'kitchen', 98.50), (21, 'Kettle', 'kitchen', 44.95),
    (22, 'Mixing Bowl', 'kitchen', 18.50), (23, 'Moka Pot', 'kitchen', 29.95), (24, 'Scales', 'kitchen', 26.50),
    (25, 'Capo', 'music', 13.95), (26, 'Headphones', 'music', 129.00), (27, 'Kalimba', 'music', 39.95),
    (28, 'Metronome', 'music', 31.50), (29, 'Record', 'music', 24.95), (30, 'Ukulele', 'music', 84.50),
    (31, 'Backpack', 'outdoor', 119.95), (32, 'Camp Stove', 'outdoor', 68.50), (33, 'Compass', 'outdoor', 27.95),
    (34, 'Hammock', 'outdoor', 54.50), (35, 'Rain Jacket', 'outdoor', 149.95), (36, 'Tent', 'outdoor', 289.00),
    (37, 'Boots', 'shoes', 159.95), (38, 'Clogs', 'shoes', 69.50), (39, 'Loafers', 'shoes', 109.95),
    (40, 'Sandals', 'shoes', 49.50), (41, 'Slippers', 'shoes', 34.95), (42, 'Trainers', 'shoes', 94.50),
    (43, 'Blocks', 'toys', 22.95), (44, 'Kite', 'toys', 26.50), (45, 'Marbles', 'toys', 6.95),
    (46, 'Puzzle', 'toys', 16.95), (47, 'Spinning Top', 'toys', 8.50), (48, 'Train Set', 'toys', 58.95);


-- Customer 12345 is Jane, who exists at every size; the others follow on her number.
CREATE TABLE customers (
    customer_id BIGINT NOT NULL,
    email VARCHAR,                      -- as typed: now and then with capitals
    phone VARCHAR,
    device_id VARCHAR NOT NULL,         -- the shop's own cookie, known before anyone signs in
    first_name VARCHAR NOT NULL,
    last_name VARCHAR NOT NULL,
    language VARCHAR NOT NULL,          -- ISO 639-1
    country VARCHAR NOT NULL,           -- ISO 3166-1 alpha-2
    birthday DATE,
    signed_up_at TIMESTAMP NOT NULL,
    marketing_consent BOOLEAN,          -- NULL: never asked
    loyalty_tier VARCHAR NOT NULL,
    preferences JSON NOT NULL,
    favourite_categories VARCHAR[] NOT NULL,
    address STRUCT(street VARCHAR, postcode VARCHAR, city VARCHAR),
    updated_at TIMESTAMP NOT NULL
);

INSERT INTO customers VALUES (
    12345, 'jane@example.com', '+999705936705', 'b84ffb7f-55c4-c989-f612-ac8a0a862cd9', 'Jane', 'Porter',
    'en', 'GB', '1988-04-17', '2022-03-05 09:12:44', true, 'gold',
    '{"channels":["email","push"],"dark_mode":true,"sizes":{"shoe":39}}',
    ['books', 'garden', 'outdoor'], {street: '7 Mill Lane', postcode: '04217', city: 'Bristol'},
    '2025-05-30 18:20:11'
);

-- How many orders a customer has placed: exponential, so that many have few and few have many. About one
-- customer in seven has none, and the mean is six.
CREATE TEMP MACRO order_count(customer_id) AS
    CAST(floor(-6.5 * ln((1 + draw('orders', customer_id, 1_000_000)) / 1_000_000)) AS BIGINT);

INSERT INTO customers
WITH drawn AS (
    SELECT
        12345 + range AS customer_id,
        order_count(customer_id) AS orders,
        DATE '2019-01-01' + CAST(draw('signed up', customer_id, 2350) AS INTEGER)
            + to_seconds(draw('signed up at', customer_id, 86_400)) AS signed_up_at
    FROM range(1, getvariable('profiles'))
)
SELECT
    customer_id,
    CASE WHEN draw('email', customer_id, 12) > 0 THEN
        pick(['amber', 'brave', 'calm', 'Dusty', 'early', 'fuzzy', 'gentle', 'Jolly', 'quiet'], 'how', customer_id)
        || pick(['.', '_', '-', '.the.'], 'joint', customer_id)
        || pick(['badger', 'crane', 'finch', 'heron', 'lynx', 'Otter', 'puffin', 'seal', 'wren'], 'who', customer_id)
        || pick(['', '', '', '+shop'], 'tag', customer_id)
        || customer_id
        || pick(['@example.com', '@example.org', '@example.net'], 'host', customer_id)
    END,
    -- Steps of 3^18 through a thousand million numbers: they look unordered, yet no two are alike.
    CASE WHEN draw('phone', customer_id, 3) > 0 THEN
        '+999' || lpad(CAST(customer_id * 387_420_489 % 1_000_000_000 AS VARCHAR), 9, '0')
    END,
    CAST(CAST(md5('device' || customer_id) AS UUID) AS VARCHAR),
    pick(first_names, 'first name', customer_id)
        || CASE WHEN draw('emoji', customer_id, 50) = 0
           THEN ' ' || pick(['🌻', '✨', '🐝', '🎸', '👩🏽‍🚀', '🏳️‍🌈'], 'which emoji', customer_id) ELSE '' END,
    pick(last_names, 'last name', customer_id),
    language,
    country,
    CASE WHEN draw('birthday', customer_id, 6) > 0
        THEN DATE '1944-01-01' + CAST(draw('born', customer_id, 23_000) AS INTEGER) END,
    signed_up_at,
    pick([true, true, true, true, true, false, false, false, false, NULL], 'consent', customer_id),
    CASE WHEN orders >= 24 THEN 'platinum' WHEN orders >= 12 THEN 'gold' WHEN orders >= 4 THEN 'silver'
        ELSE 'bronze' END,
    json_object(
        'channels', pick([['email'], ['email', 'push'], ['sms'], ['post', 'email'], []], 'channels', customer_id),
        'dark_mode', draw('dark', customer_id, 2) = 1,
        'sizes', json_object('shoe', 35 + draw('shoe', customer_id, 13))
    ),
    list_filter(
        ['books', 'garden', 'home', 'kitchen', 'music', 'outdoor', 'shoes', 'toys'],
        lambda category: draw(category, customer_id, 4) = 0
    ),
    CASE WHEN draw('address', customer_id, 20) > 0 THEN {
        street: pick(streets, 'street', customer_id) || ' ' || (1 + draw('house', customer_id, 140)),
        postcode: lpad(CAST(draw('postcode', customer_id, 100_000) AS VARCHAR), 5, '0'),
        city: pick(cities, 'city', customer_id)
    } END,
    -- Since signing up, some have changed their address or their mind.
    signed_up_at + to_seconds(
        date_diff('second', signed_up_at, exported_at) * draw('changed', customer_id, 1000) // 1000)
FROM drawn JOIN shares ON shares.number = draw('locale', customer_id, 100), export;


-- Orders before their amounts are known. Some customers lose interest part of the way from signing up to the export
-- and have not been seen since. Orders are spread over the time that interest lasted, one after another.
CREATE TEMP TABLE baskets AS
SELECT
    customer_id * 1000 + number AS order_id,
    customer_id,
    signed_up_at + to_seconds(
        date_diff('second', signed_up_at, exported_at) * least(100, 40 + draw('interest', customer_id, 100)) // 100
        * (number * 1000 - 1 - draw('early', order_id, 999)) // (order_count(customer_id) * 1000)) AS ordered_at,
    CASE draw('status', order_id, 12)
        WHEN 0 THEN 'cancelled'
        WHEN 1 THEN 'returned'
        ELSE if(ordered_at > exported_at - INTERVAL 5 DAY, 'shipped', 'delivered')
    END AS status,
    pick(['web', 'web', 'web', 'app', 'app', 'store', 'phone'], 'channel', order_id) AS channel
FROM (
    SELECT customer_id, signed_up_at, unnest(range(1, 1 + order_count(customer_id))) AS number
    FROM customers
    WHERE customer_id <> 12345
), export;

INSERT INTO baskets VALUES
    (12345001, 12345, '2022-03-05 09:31:02', 'delivered', 'web'),
    (12345002, 12345, '2022-11-24 20:05:40', 'delivered', 'app'),
    (12345003, 12345, '2023-06-17 11:48:19', 'returned', 'web'),
    (12345004, 12345, '2024-02-09 07:15:33', 'delivered', 'store'),
    (12345005, 12345, '2024-12-02 21:59:08', 'delivered', 'app'),
    (12345006, 12345, '2025-06-10 12:34:56', 'shipped', 'web');

CREATE TABLE order_lines AS
SELECT order_id, number AS line, product_id, quantity, price AS unit_price
FROM (
    SELECT
        order_id,
        number,
        1 + draw('product', order_id * 10 + number, 48) AS product_id,
        pick([1, 1, 1, 1, 1, 2], 'quantity', order_id * 10 + number) AS quantity
    FROM (
        SELECT order_id, unnest(range(1, 1 + pick([1, 1, 1, 2, 2, 3], 'lines', order_id))) AS number
        FROM baskets
        WHERE customer_id <> 12345
    )
)
JOIN products USING (product_id);

-- What Jane paid; the last line was on offer.
INSERT INTO order_lines VALUES
    (12345001, 1, 1, 2, 34.95), (12345001, 2, 11, 1, 11.95),
    (12345002, 1, 36, 1, 289.00), (12345002, 2, 33, 1, 27.95),
    (12345003, 1, 37, 1, 159.95),
    (12345004, 1, 18, 1, 139.00), (12345004, 2, 12, 2, 22.50),
    (12345005, 1, 31, 2, 119.95), (12345005, 2, 35, 1, 149.95),
    (12345006, 1, 26, 2, 129.00), (12345006, 2, 35, 1, 149.95), (12345006, 3, 20, 1, 98.50), (12345006, 4, 25, 1, 13.08);

CREATE TABLE orders AS
SELECT order_id, customer_id, ordered_at, status, channel, amount
FROM baskets
JOIN (
    SELECT order_id, CAST(sum(quantity * unit_price) AS DECIMAL(10, 2)) AS amount
    FROM order_lines
    GROUP BY order_id
) USING (order_id);


-- What customers did in the shop beside ordering: four things on average, at any time since they signed up.
CREATE TABLE visits (
    visit_id BIGINT NOT NULL,
    customer_id BIGINT NOT NULL,
    visited_at TIMESTAMP NOT NULL,      -- to the millisecond, as web analytics have it
    action VARCHAR NOT NULL,
    product_id BIGINT,                  -- NULL: of no product
    device VARCHAR NOT NULL,
    details JSON
);

INSERT INTO visits
SELECT
    customer_id * 1000 + number AS visit_id,
    customer_id,
    signed_up_at + to_milliseconds(
        date_diff('second', signed_up_at, exported_at) * draw('visited', visit_id, 1000) + draw('ms', visit_id, 1000)),
    pick(['page_viewed', 'product_viewed', 'product_viewed', 'cart_filled', 'searched'], 'action', visit_id) AS action,
    CASE WHEN action IN ('product_viewed', 'cart_filled') THEN 1 + draw('visited product', visit_id, 48) END,
    pick(['phone', 'phone', 'phone', 'laptop', 'tablet'], 'device', visit_id),
    CASE action
        WHEN 'page_viewed' THEN json_object('page', pick(['/', '/sale', '/stores', '/help'], 'page', visit_id))
        WHEN 'searched' THEN json_object('words', pick(['gift', 'warm', 'größe 46', '🎁'], 'words', visit_id),
            'found', draw('found', visit_id, 30))
    END
FROM (
    SELECT customer_id, signed_up_at, unnest(range(1, 3 + draw('visits', customer_id, 5))) AS number
    FROM customers
    WHERE customer_id <> 12345
), export;

-- Jane, who thought twice about the tent and would not be without it now.
INSERT INTO visits VALUES
    (12345001, 12345, '2022-03-05 09:20:17.250', 'searched', NULL, 'laptop', '{"words":"atlas","found":1}'),
    (12345002, 12345, '2022-11-20 21:14:03.008', 'product_viewed', 36, 'tablet', NULL),
    (12345003, 12345, '2022-11-24 19:58:31.770', 'cart_filled', 36, 'phone', NULL),
    (12345004, 12345, '2023-08-21 06:42:55.500', 'product_reviewed', 36, 'phone',
        '{"stars":5,"text":"Stood a night of gales on Skye ⛺"}'),
    (12345005, 12345, '2025-06-10 12:30:09.123', 'product_viewed', 26, 'laptop', NULL);
