package order_test

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"cardorder/internal/order"
)

// agreed is what an issuer agreed on for the product of the samples: exactly
// what they order.
func agreed() *order.Program {
	return &order.Program{
		CardProductID:        "gold-debit",
		DistributionChannels: []order.Channel{order.ChannelThales, order.ChannelCentral, order.ChannelInstant},
		DestinationCountries: []string{"CH", "GB"},
		DeliveryMethods:      []string{"REGISTERED_MAIL", "COUNTER"},
		CardCarriers:         []string{"LETTER_A4", "LEAFLET"},
		Packagings:           []string{"WINDOW_C5", "BOX", "SLEEVE"},
		Inserts:              []string{"flyer-1", "terms_2", "conditions"},
		PaymentApplications: []order.PaymentProfile{
			{Config: "profile-7", ODAKeyIndexes: []string{"09"}, DerivationKeyIndexes: []string{"09"}},
			{
				Config: "profile-7", ODAKeyIndexes: []string{"01"}, DerivationKeyIndexes: []string{"02"},
				CVKeyIndexes: []string{"03"}, PVKeyIndexes: []string{"04"},
			},
			{Config: "profile-8"},
		},
		AlphaCard: true,
	}
}

func agreement(p *order.Program) *order.Rules {
	return &order.Rules{Guard: guard, Programs: map[string]*order.Program{p.CardProductID: p}}
}

// ruled writes faults as "pointer code rule", sorted.
func ruled(faults order.Faults) []string {
	var list []string
	for _, f := range faults {
		list = append(list, strings.TrimSuffix(f.Pointer+" "+f.Code+" "+f.Rule, " "))
	}
	slices.Sort(list)
	return list
}

func TestOrdersWithinTheirProgram(t *testing.T) {
	t.Parallel()
	for _, channel := range []string{"thales", "instant", "central"} {
		for name, rules := range map[string]*order.Rules{
			"what is ordered":    agreement(agreed()),
			"no restriction":     agreement(&order.Program{CardProductID: "gold-debit", AlphaCard: true}),
			"nothing configured": {Guard: guard},
		} {
			if _, faults := order.Decode(golden(t, channel+".json"), rules); faults != nil {
				t.Errorf("%s, %s: %v", channel, name, faults)
			}
		}
	}
}

func TestOrdersOutsideTheirProgram(t *testing.T) {
	t.Parallel()
	const outside = " outside-program "
	for _, c := range []struct {
		channel, pointer string
		value            any
		program          func(*order.Program)
		want             []string
	}{
		{"thales", "/cardProductId", "platinum", nil, []string{"/cardProductId" + outside + "cardProducts"}},
		{"thales", "/cardProductId", missing{}, nil, []string{"/cardProductId required"}},
		{"thales", "/cardProductId", "a b", nil, []string{"/cardProductId invalid-format"}},
		{
			"thales", "/urgent", false, func(p *order.Program) { p.DistributionChannels = p.DistributionChannels[1:] },
			[]string{"/distributionChannel" + outside + "distributionChannels"},
		},
		{"thales", "/distributionChannel", "POST", nil, []string{"/distributionChannel invalid-value"}},
		{
			"thales", "/shipment/deliveryAddress/countryCode", "DE", nil,
			[]string{"/shipment/deliveryAddress/countryCode" + outside + "destinationCountries"},
		},
		{"thales", "/shipment/deliveryAddress/countryCode", "XK", nil, []string{"/shipment/deliveryAddress/countryCode invalid-value"}},
		{"thales", "/shipment/individualAddress/countryCode", "IT", nil, nil}, // nothing is sent there
		{"thales", "/services/delivery", "PIGEON", nil, []string{"/services/delivery" + outside + "deliveryMethods"}},
		{"thales", "/services/cardCarrier", "SCROLL", nil, []string{"/services/cardCarrier" + outside + "cardCarriers"}},
		{"thales", "/services/packaging", "BARREL", nil, []string{"/services/packaging" + outside + "packagings"}},
		{"thales", "/packagingConfig/inserts/1", "comic", nil, []string{"/packagingConfig/inserts/1" + outside + "inserts"}},
		{"thales", "/packagingConfig/inserts/1", "a b", nil, []string{"/packagingConfig/inserts/1 invalid-format"}},
		{"thales", "/services/alphaCard", true, func(p *order.Program) { p.AlphaCard = false }, []string{"/services/alphaCard" + outside + "alphaCard"}},
		{"thales", "/services/alphaCard", false, func(p *order.Program) { p.AlphaCard = false }, nil},

		// D1's defaults count where D1 makes the card: what is left out is ordered.
		{"thales", "/services/delivery", missing{}, nil, []string{"/services/delivery" + outside + "deliveryMethods"}},
		{"thales", "/services/delivery", missing{}, func(p *order.Program) { p.DeliveryMethods = []string{"NO_SHIPMENT"} }, nil},
		{"thales", "/services/delivery", 1, nil, []string{"/services/delivery wrong-type"}},
		{"thales", "/services/cardCarrier", nil, nil, []string{"/services/cardCarrier" + outside + "cardCarriers"}},
		{"thales", "/services/cardCarrier", "NO_CARRIER", func(p *order.Program) { p.CardCarriers = []string{"NO_CARRIER"} }, nil},
		{
			"thales", "/services/packaging", missing{}, nil,
			[]string{"/packagingConfig/inserts not-allowed", "/services/packaging" + outside + "packagings"},
		},
		{"central", "/services/delivery", missing{}, nil, nil},
		{"central", "/services/delivery", "PIGEON", nil, []string{"/services/delivery" + outside + "deliveryMethods"}},
		{"instant", "/services/cardCarrier", missing{}, nil, nil},

		// Personalization: keys belong to a config.
		{"thales", "/paymentApplication/config", "profile-9", nil, []string{"/paymentApplication/config" + outside + "paymentApplications"}},
		{"thales", "/paymentApplication/config", "profile-8", nil, nil},
		{"central", "/paymentApplication/odaKeyIndex", "03", nil, []string{
			"/paymentApplication/derivationKeyIndex" + outside + "derivationKeyIndexes",
			"/paymentApplication/odaKeyIndex" + outside + "odaKeyIndexes",
		}}, // of the config's first profile
		{
			"thales", "/paymentApplication/cvKeyIndex", "07", func(p *order.Program) { p.PaymentApplications = p.PaymentApplications[1:] },
			[]string{"/paymentApplication/cvKeyIndex" + outside + "cvKeyIndexes"},
		},
		{
			"thales", "/paymentApplication/pvKeyIndex", "07", func(p *order.Program) { p.PaymentApplications = p.PaymentApplications[1:] },
			[]string{"/paymentApplication/pvKeyIndex" + outside + "pvKeyIndexes"},
		},
		{"thales", "/paymentApplication/pvKeyIndex", missing{}, nil, nil},
		{
			"thales", "/paymentApplication/config", missing{}, nil,
			[]string{"/paymentApplication/config required"},
		},

		// An empty list allows nothing.
		{
			"central", "/cardId", "c", func(p *order.Program) {
				p.DistributionChannels, p.DestinationCountries, p.Packagings = []order.Channel{}, []string{}, []string{}
				p.Inserts, p.PaymentApplications = []string{}, []order.PaymentProfile{}
			},
			[]string{
				"/distributionChannel" + outside + "distributionChannels",
				"/packagingConfig/inserts/0" + outside + "inserts",
				"/paymentApplication/config" + outside + "paymentApplications",
				"/services/packaging" + outside + "packagings",
				"/shipment/deliveryAddress/countryCode" + outside + "destinationCountries",
			},
		},
	} {
		o := sample(t, c.channel)
		set(o, c.pointer, c.value)
		p := agreed()
		if c.program != nil {
			c.program(p)
		}
		_, faults := order.Decode(text(t, o), agreement(p))
		if got := ruled(faults); !slices.Equal(got, c.want) {
			t.Errorf("%s with %v at %s:\ngot  %q\nwant %q", c.channel, c.value, c.pointer, got, c.want)
		}
	}
	_, faults := order.Decode(golden(t, "instant.json"), &order.Rules{Programs: map[string]*order.Program{}})
	if got := ruled(faults); !slices.Equal(got, []string{"/cardProductId" + outside + "cardProducts"}) {
		t.Errorf("programs without a product: got %q", got)
	}
}

func TestProgramsSayWhereOrdersEnd(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		channel string
		endsAt  order.Status
		want    order.Status
	}{
		{"thales", "", order.Shipped},
		{"thales", order.Produced, order.Produced},
		{"instant", "", order.Produced},
		{"central", order.Shipped, order.Shipped},
	} {
		p := agreed()
		p.EndsAt = c.endsAt
		r, faults := order.Decode(golden(t, c.channel+".json"), agreement(p))
		if faults != nil {
			t.Fatal(faults)
		}
		if r.EndsAt != c.want {
			t.Errorf("%s with %q ends at %s, want %s", c.channel, c.endsAt, r.EndsAt, c.want)
		}
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	capitals := order.NameRule{Character: regexp.MustCompile(`[A-Z '-]`), Length: 20}
	wide := order.NameRule{Character: regexp.MustCompile(`^[\p{L}&, ]$`), Length: 30}
	const last, printed = "/shipment/individualAddress/lastName", "/sensitiveData/name"
	for _, c := range []struct {
		name   string
		rule   order.NameRule
		code   string // empty: taken
		rule2  string
		detail string
	}{
		{name: "Ada"},
		{name: "O'Hara-Müller"},
		{name: "Dr. A. Ödegård / 2nd"},
		{name: "Nguye\u0302\u0303n"}, // combining marks
		{name: "Владимир"},
		{name: "山田 太郎"},
		{name: "محمد"},
		{name: strings.Repeat("é", 26)},
		{name: strings.Repeat("é", 27), code: "too-long", detail: "is longer than 26 characters"},
		{name: "A&B", code: "invalid-character", detail: "has a character at position 2 that cannot be printed"},
		{name: "Zoë\u2019", code: "invalid-character", detail: "has a character at position 4 that cannot be printed"},
		{name: "Ada, Countess", code: "invalid-character", detail: "has a character at position 4 that cannot be printed"},
		{name: "😀", code: "invalid-character", detail: "has a character at position 1 that cannot be printed"},
		{name: "\u0301Ada", code: "invalid-character", detail: "has a character at position 1 that cannot be printed"},
		{name: "Ada \u0301", code: "invalid-character", detail: "has a character at position 5 that cannot be printed"},
		{name: "Ada\u200bLovelace", code: "invalid-character", detail: "has a character at position 4 that cannot be printed"},
		{name: "Ada\u00a0Lovelace", code: "invalid-character", detail: "has a character at position 4 that cannot be printed"},
		{name: "Ada\tLovelace", code: "invalid-character", detail: "has a control character at position 4"},
		{name: " ", code: "invalid-format", detail: "must not be empty"},
		{name: "", code: "invalid-format", detail: "must not be empty"},

		{name: "ADA O'HARA-LEE", rule: capitals},
		{name: "ADA.", rule: capitals, code: "outside-program", rule2: "nameCharacters", detail: "has a character at position 4 that cannot be printed"},
		{name: "ZOË", rule: capitals, code: "outside-program", rule2: "nameCharacters", detail: "has a character at position 3 that cannot be printed"},
		{name: "ZO&", rule: capitals, code: "invalid-character", detail: "has a character at position 3 that cannot be printed"},
		{name: strings.Repeat("A", 21), rule: capitals, code: "outside-program", rule2: "nameLength", detail: "is longer than 20 characters"},
		{name: strings.Repeat("A", 27), rule: capitals, code: "too-long", detail: "is longer than 20 characters"},
		{name: "Ada & Co, " + strings.Repeat("é", 20), rule: wide},
		{name: strings.Repeat("é", 31), rule: wide, code: "too-long", detail: "is longer than 30 characters"},
		{name: "Ada", rule: order.NameRule{Character: regexp.MustCompile(`[A-Z]*`)}, code: "outside-program", rule2: "nameCharacters", detail: "has a character at position 1 that cannot be printed"},
	} {
		for _, pointer := range []string{last, printed, "/shipment/deliveryAddress/firstName", "/sensitiveData/secondName"} {
			o := sample(t, "thales")
			delete(o, "encryptedData")
			o["sensitiveData"] = sensitive()
			set(o, pointer, c.name)
			p := agreed()
			p.Names = c.rule
			set(o, "/shipment/individualAddress/firstName", missing{})
			for _, other := range []string{last, printed} {
				if other != pointer {
					set(o, other, missing{})
				}
			}
			_, faults := order.Decode(text(t, o), agreement(p))
			switch {
			case c.code == "" && faults != nil:
				t.Errorf("%q at %s: %v", c.name, pointer, faults)
			case c.code != "" && (len(faults) != 1 || faults[0] != order.Fault{Pointer: pointer, Code: c.code, Detail: c.detail, Rule: c.rule2}):
				t.Errorf("%q at %s: got %+v, want %s %q %q", c.name, pointer, faults, c.code, c.detail, c.rule2)
			}
		}
	}
	// Too long and not printable: both are told.
	o := sample(t, "thales")
	set(o, last, strings.Repeat("&", 27))
	_, faults := order.Decode(text(t, o), rules)
	if got := places(faults); !slices.Equal(got, []string{last + " invalid-character", last + " too-long"}) {
		t.Errorf("got %q", got)
	}
}

// A decomposed or escaped name is judged as what it stands for.
func TestNamesWithEscapes(t *testing.T) {
	t.Parallel()
	for written, want := range map[string]string{
		`"Zo\u00eb D\u00dcRST"`: "Zoë DÜRST", `"ADA"`: "ADA", `"\u0041\u0044\u0041"`: "ADA", `"\uD83D\uDE00"`: "", `"a\u0026b"`: "", `"\t"`: "",
	} {
		o := sample(t, "thales")
		delete(o, "encryptedData")
		o["sensitiveData"] = "HERE"
		body := strings.Replace(string(text(t, o)), `"HERE"`, `{"pan":"`+issuerPAN+`","exp":"3012","name":`+written+`}`, 1)
		r, faults := order.Decode([]byte(body), rules)
		if (faults == nil) != (want != "") {
			t.Errorf("%s: %v", written, faults)
		}
		if got := order.PrintedName(r.SensitiveData); want != "" && got != want {
			t.Errorf("%s is printed %q", written, got)
		}
	}
	for _, data := range []string{"", "{", "[]", `{"name":null}`, `{"name":1}`, `{}`, `{"name":"\u0000"}`, `{"name":"a"}x`} {
		if got := order.PrintedName([]byte(data)); got != "" {
			t.Errorf("%s is printed %q", data, got)
		}
	}
}
