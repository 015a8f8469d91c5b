package order_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"

	"cardorder/internal/order"

	"github.com/go-json-experiment/json/jsontext"
	"pgregory.net/rapid"
)

// What core banking sends, and the body that D1 gets for it, byte for byte.
func TestBodyForD1(t *testing.T) {
	t.Parallel()
	for channel, endsAt := range map[string]order.Status{
		"thales": order.Shipped, "instant": order.Produced, "central": order.Produced,
	} {
		t.Run(channel, func(t *testing.T) {
			t.Parallel()
			r := wellFormed(t, golden(t, channel+".json"))
			body, err := r.Production.Body()
			if err != nil {
				t.Fatal(err)
			}
			want := bytes.TrimSuffix(golden(t, channel+".d1.json"), []byte("\n"))
			if !bytes.Equal(body, want) {
				t.Errorf("got  %s\nwant %s", body, want)
			}
			if got := r.Production.EndsAt(); got != endsAt {
				t.Errorf("ends at %s, want %s", got, endsAt)
			}
		})
	}
}

// The golden bodies hold every member that there is.
func TestGoldenBodiesAreComplete(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, channel := range []string{"thales", "instant", "central"} {
		var body object
		if err := json.Unmarshal(golden(t, channel+".d1.json"), &body); err != nil {
			t.Fatal(err)
		}
		for _, pointer := range pointers(body) {
			seen[pointer] = true
		}
	}
	var walk func(at string, typ reflect.Type)
	walk = func(at string, typ reflect.Type) {
		if typ.Kind() == reflect.Pointer {
			typ = typ.Elem()
		}
		if typ.Kind() != reflect.Struct {
			return
		}
		for field := range typ.Fields() {
			name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
			if !seen[at+"/"+name] {
				t.Errorf("%s/%s is in none of them", at, name)
			}
			walk(at+"/"+name, field.Type)
		}
	}
	walk("", reflect.TypeFor[order.Production]())
}

// What is sent is what was accepted: any valid order, less what is ours and
// with D1's defaults.
func TestSentAsAccepted(t *testing.T) {
	t.Parallel()
	var full []object
	for _, channel := range []string{"thales", "instant", "central"} {
		full = append(full, sample(t, channel))
	}
	values := []any{missing{}, nil, true, false, "other", "FR", "it", "INDIVIDUAL", "+15550000000", []any{}, []any{"a", "b"}, object{}}
	rapid.Check(t, func(rt *rapid.T) {
		o := clone(t, rapid.SampledFrom(full).Draw(rt, "order"))
		for range rapid.IntRange(0, 3).Draw(rt, "changes") {
			set(o, rapid.SampledFrom(pointers(o)).Draw(rt, "pointer"), rapid.SampledFrom(values).Draw(rt, "value"))
		}
		r, faults := order.Decode(text(t, o), rules)
		if faults != nil {
			return
		}
		if r.Production.IssuerRequestID == "" { // made later
			r.Production.IssuerRequestID, o["issuerRequestId"] = "made", "made"
		}
		body, err := r.Production.Body()
		if err != nil {
			rt.Fatal(err)
		}
		for _, ours := range []string{"cardId", "metadata", "urgent", "duplicateOverride", "replacesOrderId"} {
			delete(o, ours)
		}
		if shipment, ok := o["shipment"].(object); ok && shipment["type"] == nil {
			shipment["type"] = "INDIVIDUAL"
		}
		var sent object
		if err := json.Unmarshal(body, &sent); err != nil {
			rt.Fatal(err)
		}
		if want := withoutNothing(o); !reflect.DeepEqual(sent, want) {
			rt.Errorf("got  %s\nwant %s", body, text(t, want))
		}
	})
}

// withoutNothing leaves out what says nothing: null, false and empty lists.
func withoutNothing(o object) object {
	kept := object{}
	for name, value := range o {
		switch v := value.(type) {
		case nil:
			continue
		case bool:
			if !v {
				continue
			}
		case []any:
			if len(v) == 0 {
				continue
			}
		case object:
			value = withoutNothing(v)
		}
		kept[name] = value
	}
	return kept
}

// What is ours does not go to D1.
func TestOwnMembers(t *testing.T) {
	t.Parallel()
	r := wellFormed(t, golden(t, "thales.json"))
	if r.CardID != "card-0001" || !r.Urgent || r.DuplicateOverride != "the first letter burnt" || r.SensitiveData != nil ||
		r.ReplacesOrderID != "0190d3a2-7c1e-7b44-9c55-3f1f6d2a8e01" ||
		!maps.Equal(r.Metadata, map[string]string{"branch": "Zurich 4", "ref.2": "café"}) ||
		!slices.Equal(r.Warnings, []string{"deprecated-member:state", "deprecated-member:oldCardId"}) {
		t.Errorf("got %+v", r)
	}
	r = wellFormed(t, golden(t, "central.json"))
	if r.Urgent || r.DuplicateOverride != "" || r.Metadata != nil || r.Warnings != nil {
		t.Errorf("got %+v", r)
	}
}

func TestTermsNameNobody(t *testing.T) {
	t.Parallel()
	r := wellFormed(t, golden(t, "thales.json"))
	want := `{"services":{"issuance":"RENEWAL","priority":"HIGH","delivery":"REGISTERED_MAIL","cardCarrier":"LETTER_A4",` +
		`"packaging":"WINDOW_C5","pinMailer":true},"paymentApplication":{"config":"profile-7","odaKeyIndex":"01",` +
		`"derivationKeyIndex":"02","cvKeyIndex":"03","pvKeyIndex":"04"},"packagingConfig":{"inserts":["flyer-1","terms_2"]},` +
		`"shipment":{"type":"BULK","groupId":"box-1","orderId":"pallet-9"},"state":"ACTIVE","oldCardId":"card-0000"}`
	if got := string(text(t, r.Production.Terms())); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// D1 follows a card to the carrier only if it ships it itself.
func TestEndsAt(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		channel  order.Channel
		delivery string
		want     order.Status
	}{
		{order.ChannelThales, "MAIL", order.Shipped},
		{order.ChannelThales, "NO_SHIPMENT", order.Produced},
		{order.ChannelThales, "", order.Produced}, // D1's default is NO_SHIPMENT
		{order.ChannelInstant, "MAIL", order.Produced},
		{order.ChannelCentral, "MAIL", order.Produced},
	} {
		p := order.Production{Channel: c.channel, Services: order.Services{Delivery: c.delivery}}
		if got := p.EndsAt(); got != c.want {
			t.Errorf("%s with delivery %q ends at %s, want %s", c.channel, c.delivery, got, c.want)
		}
	}
}

// Each rule, broken alone in an order that is valid otherwise.
func TestRules(t *testing.T) {
	t.Parallel()
	address := func() object {
		return object{"line1": "1", "zipCode": "1", "city": "c", "countryCode": "CH"}
	}
	list := func(n int) []any { return slices.Repeat([]any{"x"}, n) }
	many := object{}
	for i := range 21 {
		many["m"+string(rune('a'+i))] = "v"
	}
	cases := []struct {
		channel, pointer string
		value            any
		want             []string // no fault when empty
	}{
		// Required members.
		{"thales", "/cardId", missing{}, []string{"/cardId required"}},
		{"thales", "/cardId", nil, []string{"/cardId required"}},
		{"thales", "/consumerId", missing{}, []string{"/consumerId required"}},
		{"thales", "/cardProductId", missing{}, []string{"/cardProductId required"}},
		{"thales", "/distributionChannel", missing{}, []string{"/distributionChannel required"}},
		{"thales", "/services", missing{}, []string{"/services required"}},
		{"thales", "/services", nil, []string{"/services required"}},
		{"thales", "/services/issuance", missing{}, []string{"/services/issuance required"}},
		{"thales", "/paymentApplication", missing{}, []string{"/paymentApplication required"}},
		{"instant", "/paymentApplication", nil, []string{"/paymentApplication required"}},
		{"central", "/paymentApplication", missing{}, []string{"/paymentApplication required"}},
		{"thales", "/paymentApplication/config", missing{}, []string{"/paymentApplication/config required"}},
		{"thales", "/paymentApplication/odaKeyIndex", missing{}, []string{"/paymentApplication/odaKeyIndex required"}},
		{"thales", "/paymentApplication/derivationKeyIndex", nil, []string{"/paymentApplication/derivationKeyIndex required"}},
		{"thales", "/shipment/deliveryAddress", missing{}, []string{"/shipment/deliveryAddress required"}},
		{"thales", "/shipment/deliveryAddress/line1", missing{}, []string{"/shipment/deliveryAddress/line1 required"}},
		{"thales", "/shipment/deliveryAddress/zipCode", nil, []string{"/shipment/deliveryAddress/zipCode required"}},
		{"thales", "/shipment/individualAddress/city", missing{}, []string{"/shipment/individualAddress/city required"}},
		{"thales", "/shipment/individualAddress/countryCode", missing{}, []string{"/shipment/individualAddress/countryCode required"}},
		{"thales", "/duplicateOverride", object{}, []string{"/duplicateOverride/reason required"}},

		// Members that an order can do without; null is the same as absent.
		{"thales", "/issuerRequestId", missing{}, nil},
		{"thales", "/issuerRequestId", nil, nil},
		{"thales", "/shipment/individualAddress", missing{}, nil},
		{"thales", "/services/delivery", nil, nil},
		{"thales", "/cardDesign", nil, nil},
		{"thales", "/cardCarrierConfig", missing{}, nil},
		{"thales", "/packagingConfig", object{}, nil},
		{"thales", "/metadata", object{}, nil},
		{"thales", "/metadata", nil, nil},
		{"thales", "/urgent", nil, nil},
		{"thales", "/duplicateOverride", nil, nil},

		// Channels.
		{"thales", "/shipment", missing{}, []string{"/shipment required"}},
		{"thales", "/shipment", nil, []string{"/shipment required"}},
		{"central", "/shipment", missing{}, nil},
		{"instant", "/shipment", object{"deliveryAddress": address()}, nil},
		{"instant", "/persoStation", missing{}, []string{"/persoStation required"}},
		{"thales", "/persoStation", "s", []string{"/persoStation not-allowed"}},
		{"central", "/persoStation", "s", []string{"/persoStation not-allowed"}},
		{"thales", "/distributionChannel", "thales", []string{"/distributionChannel invalid-value"}},

		// Shipments.
		{"thales", "/shipment/type", "INDIVIDUAL", []string{"/shipment/groupId not-allowed", "/shipment/orderId not-allowed"}},
		{"thales", "/shipment/type", missing{}, []string{"/shipment/groupId not-allowed", "/shipment/orderId not-allowed"}},
		{"thales", "/shipment/type", "BOX", []string{"/shipment/type invalid-value"}},
		{"thales", "/shipment/groupId", missing{}, nil},

		{"instant", "/shipment/individualAddress", missing{}, nil},

		// What is put in needs something to be put into.
		{"thales", "/services/packaging", missing{}, []string{"/packagingConfig/inserts not-allowed"}},
		{"thales", "/services/packaging", nil, []string{"/packagingConfig/inserts not-allowed"}},
		{"thales", "/services/packaging", "NO_PACK", []string{"/packagingConfig/inserts not-allowed"}},
		{"central", "/services/packaging", missing{}, []string{"/packagingConfig/inserts not-allowed"}},
		{"thales", "/services/packaging", 1, []string{"/services/packaging wrong-type"}},
		{"thales", "/services/cardCarrier", missing{}, nil}, // D1 says nothing of a letter that is not sent

		// Codes of countries and languages, phones, ids.
		{"thales", "/shipment/deliveryAddress/countryCode", "XX", []string{"/shipment/deliveryAddress/countryCode invalid-value"}},
		{"thales", "/shipment/deliveryAddress/countryCode", "XK", []string{"/shipment/deliveryAddress/countryCode invalid-value"}},
		{"thales", "/shipment/deliveryAddress/countryCode", "UK", []string{"/shipment/deliveryAddress/countryCode invalid-value"}},
		{"thales", "/shipment/deliveryAddress/countryCode", "SX", nil},
		{"thales", "/cardCarrierConfig/language", "xx", []string{"/cardCarrierConfig/language invalid-value"}},
		{"thales", "/cardCarrierConfig/language", "sh", []string{"/cardCarrierConfig/language invalid-value"}},
		{"thales", "/cardCarrierConfig/language", "de-CH", []string{"/cardCarrierConfig/language invalid-format"}},
		{"thales", "/cardCarrierConfig/language", "rm", nil},
		{"thales", "/shipment/individualAddress/mobilePhoneNumber", "+123456789012345", nil},
		{"thales", "/shipment/individualAddress/mobilePhoneNumber", "+6834000", nil},
		{"thales", "/shipment/individualAddress/mobilePhoneNumber", "+1234567890123456", []string{"/shipment/individualAddress/mobilePhoneNumber invalid-format"}},
		{"thales", "/shipment/individualAddress/mobilePhoneNumber", "+49 1511 2345678", []string{"/shipment/individualAddress/mobilePhoneNumber invalid-format"}},
		{"thales", "/shipment/individualAddress/mobilePhoneNumber", "0151123456", []string{"/shipment/individualAddress/mobilePhoneNumber invalid-format"}},
		{"thales", "/shipment/individualAddress/mobilePhoneNumber", "+0151123456", []string{"/shipment/individualAddress/mobilePhoneNumber invalid-format"}},
		{"thales", "/shipment/individualAddress/mobilePhoneNumber", "+49151123456x", []string{"/shipment/individualAddress/mobilePhoneNumber invalid-format"}},
		{"thales", "/shipment/individualAddress/mobilePhoneNumber", "+", []string{"/shipment/individualAddress/mobilePhoneNumber invalid-format"}},
		{"thales", "/shipment/individualAddress/mobilePhoneNumber", "+990000123456788", nil}, // the issuer's BIN, no Luhn
		{"thales", "/replacesOrderId", "0190D3A2-7C1E-7B44-9C55-3F1F6D2A8E01", []string{"/replacesOrderId invalid-format"}},
		{"thales", "/replacesOrderId", "0190d3a27c1e7b449c553f1f6d2a8e01", []string{"/replacesOrderId invalid-format"}},
		{"thales", "/replacesOrderId", "0190d3a2-7c1e-7b44-9c55-3f1f6d2a8e0", []string{"/replacesOrderId invalid-format"}},
		{"thales", "/replacesOrderId", "0190d3a2-7c1e-7b44-9c55_3f1f6d2a8e01", []string{"/replacesOrderId invalid-format"}},
		{"thales", "/replacesOrderId", "", []string{"/replacesOrderId invalid-format"}},
		{"thales", "/replacesOrderId", nil, nil},
		{"thales", "/orderId", "x", []string{"/orderId unknown-member"}},
		{"thales", "/idempotencyKey", "x", []string{"/idempotencyKey unknown-member"}},
		{"thales", "/state", "a b", []string{"/state invalid-format"}},
		{"thales", "/holds", true, []string{"/holds unknown-member"}},
		{"thales", "/hold", true, nil},
		{"thales", "/hold", "true", []string{"/hold wrong-type"}},
		{"thales", "/notBefore", "2026-03-09T06:00:00Z", nil},
		{"thales", "/notBefore", "2026-03-09T06:00:00.25+01:00", nil},
		{"thales", "/notBefore", "2026-03-09", []string{"/notBefore invalid-format"}},
		{"thales", "/notBefore", "2026-02-30T06:00:00Z", []string{"/notBefore invalid-format"}},
		{"thales", "/notBefore", "2026-03-09T06:00:00", []string{"/notBefore invalid-format"}},
		{"thales", "/notBefore", "2026-03-09 06:00:00Z", []string{"/notBefore invalid-format"}},
		{"thales", "/notBefore", 1773036000, []string{"/notBefore wrong-type"}},

		// Closed lists, patterns, lengths.
		{"thales", "/services/issuance", "creation", []string{"/services/issuance invalid-value"}},
		{"thales", "/cardId", strings.Repeat("x", 48), nil},
		{"thales", "/cardId", strings.Repeat("x", 49), []string{"/cardId invalid-format"}},
		{"thales", "/cardId", "", []string{"/cardId invalid-format"}},
		{"thales", "/cardId", "a/b", []string{"/cardId invalid-format"}},
		{"thales", "/cardId", "é", []string{"/cardId invalid-format"}},
		{"thales", "/consumerId", strings.Repeat("x", 64), nil},
		{"thales", "/consumerId", strings.Repeat("x", 65), []string{"/consumerId invalid-format"}},
		{"thales", "/cardProductId", strings.Repeat("x", 49), []string{"/cardProductId invalid-format"}},
		{"thales", "/issuerRequestId", strings.Repeat("x", 64), nil},
		{"thales", "/issuerRequestId", strings.Repeat("x", 65), []string{"/issuerRequestId invalid-format"}},
		{"thales", "/issuerRequestId", "", []string{"/issuerRequestId invalid-format"}},
		{"thales", "/oldCardId", "a b", []string{"/oldCardId invalid-format"}},
		{"thales", "/services/delivery", "a b", []string{"/services/delivery invalid-format"}},
		{"thales", "/shipment/deliveryAddress/line1", strings.Repeat("ü", 64), nil},
		{"thales", "/shipment/deliveryAddress/line1", strings.Repeat("ü", 65), []string{"/shipment/deliveryAddress/line1 too-long"}},
		{"thales", "/shipment/deliveryAddress/line1", "  ", []string{"/shipment/deliveryAddress/line1 invalid-format"}},
		{"thales", "/shipment/deliveryAddress/line2", "", []string{"/shipment/deliveryAddress/line2 invalid-format"}},
		{"thales", "/shipment/deliveryAddress/countryCode", "ch", []string{"/shipment/deliveryAddress/countryCode invalid-format"}},
		{"thales", "/shipment/deliveryAddress/countryCode", "CHE", []string{"/shipment/deliveryAddress/countryCode invalid-format"}},
		{"thales", "/cardCarrierConfig/language", "DE", []string{"/cardCarrierConfig/language invalid-format"}},
		{"thales", "/cardDesign/memberId", strings.Repeat("x", 129), []string{"/cardDesign/memberId too-long"}},
		{"thales", "/cardDesign/images", list(20), nil},
		{"thales", "/cardDesign/images", list(21), []string{"/cardDesign/images too-many"}},
		{"thales", "/cardDesign/customLines/1", strings.Repeat("x", 129), []string{"/cardDesign/customLines/1 too-long"}},
		{"thales", "/packagingConfig/inserts/0", "a b", []string{"/packagingConfig/inserts/0 invalid-format"}},
		{"thales", "/metadata", many, []string{"/metadata too-many"}},
		{"thales", "/metadata/branch", strings.Repeat("x", 256), nil},
		{"thales", "/metadata/branch", strings.Repeat("x", 257), []string{"/metadata/branch too-long"}},
		{"thales", "/metadata", object{"a b": "x"}, []string{"/metadata invalid-format"}},
		{"thales", "/metadata", object{"": "x"}, []string{"/metadata invalid-format"}},
		{"thales", "/metadata", object{strings.Repeat("n", 65): "x"}, []string{"/metadata invalid-format"}},
		{"thales", "/duplicateOverride/reason", strings.Repeat("x", 257), []string{"/duplicateOverride/reason too-long"}},
		{"thales", "/encryptedData", "a.b.c.d", []string{"/encryptedData invalid-format"}},
		{"thales", "/encryptedData", "a.b.c.d.e+", []string{"/encryptedData invalid-format"}},
		{"thales", "/encryptedData", "a.b.c.d." + strings.Repeat("e", order.MaxEncryptedData-8), nil},
		{"thales", "/encryptedData", "a.b.c.d." + strings.Repeat("e", order.MaxEncryptedData-7), []string{"/encryptedData too-long"}},

		// Types. Nothing is converted.
		{"thales", "/cardId", 1, []string{"/cardId wrong-type"}},
		{"thales", "/services", "x", []string{"/services wrong-type"}},
		{"thales", "/services/pinMailer", "true", []string{"/services/pinMailer wrong-type"}},
		{"thales", "/urgent", 1, []string{"/urgent wrong-type"}},
		{"thales", "/paymentApplication", []any{}, []string{"/paymentApplication wrong-type"}},
		{"thales", "/paymentApplication/odaKeyIndex", 1, []string{"/paymentApplication/odaKeyIndex wrong-type"}},
		{"thales", "/cardDesign/images", "x", []string{"/cardDesign/images wrong-type"}},
		{"thales", "/cardDesign/images/1", nil, []string{"/cardDesign/images/1 wrong-type"}},
		{"thales", "/shipment", []any{}, []string{"/shipment wrong-type"}},
		{"thales", "/shipment/deliveryAddress", "x", []string{"/shipment/deliveryAddress wrong-type"}},
		{"thales", "/metadata/branch", 4, []string{"/metadata/branch wrong-type"}},
		{"thales", "/metadata/branch", nil, []string{"/metadata/branch wrong-type"}},
		{"thales", "/metadata", []any{}, []string{"/metadata wrong-type"}},
		{"thales", "/duplicateOverride", "because", []string{"/duplicateOverride wrong-type"}},

		// Members that nobody knows are named, unless the name is odd.
		{"thales", "/colour", "x", []string{"/colour unknown-member"}},
		{"thales", "/colour", nil, []string{"/colour unknown-member"}},
		{"thales", "/CardId", "x", []string{"/CardId unknown-member"}},
		{"thales", "/services/speed", "x", []string{"/services/speed unknown-member"}},
		{"thales", "/shipment/deliveryAddress/zip", "x", []string{"/shipment/deliveryAddress/zip unknown-member"}},
		{"thales", "/duplicateOverride/who", "x", []string{"/duplicateOverride/who unknown-member"}},
		{"thales", "/services/a b", "x", []string{"/services unknown-member"}},
		{"thales", "/~", "x", []string{" unknown-member"}},

		// Control characters.
		{"thales", "/cardId", "a\x00", []string{"/cardId invalid-character"}},
		{"thales", "/shipment/deliveryAddress/line1", "a\nb", []string{"/shipment/deliveryAddress/line1 invalid-character"}},
		{"thales", "/cardDesign/customLines/0", "\u0085", []string{"/cardDesign/customLines/0 invalid-character"}},
		{"thales", "/metadata/branch", "\x7f", []string{"/metadata/branch invalid-character"}},
		{"thales", "/duplicateOverride/reason", "\x00", []string{"/duplicateOverride/reason invalid-character"}},

		// Card numbers where none may stand.
		{"thales", "/cardId", issuerPAN, []string{"/cardId card-number"}},
		{"thales", "/cardId", visaPAN, nil}, // an id that Luhn and a scheme's prefix fit by chance
		{"thales", "/metadata/branch", "card " + visaPAN, []string{"/metadata/branch card-number"}},
		{"thales", "/metadata", object{visaPAN: "x"}, []string{"/metadata card-number"}},
		{"thales", "/cardDesign/customLines/0", "4111 1111 1111 1111", []string{"/cardDesign/customLines/0 card-number"}},
		{"thales", "/shipment/deliveryAddress/line2", "3782-822463-10005", []string{"/shipment/deliveryAddress/line2 card-number"}},
		{"thales", "/duplicateOverride/reason", "again " + visaPAN, []string{"/duplicateOverride/reason card-number"}},
		{"thales", "/services/delivery", issuerPAN, []string{"/services/delivery card-number"}},
		{"thales", "/" + visaPAN, "x", []string{" unknown-member"}},
		{"thales", "/x" + visaPAN, "x", []string{" unknown-member"}},
		{"thales", "/4111_1111.1111-1111", "x", []string{" unknown-member"}},

		// A phone number is none, though this one passes Luhn and begins like a Visa card.
		{"thales", "/shipment/individualAddress/mobilePhoneNumber", "+4915112345678", nil},
	}
	for _, c := range cases {
		o := sample(t, c.channel)
		set(o, c.pointer, c.value)
		r, faults := order.Decode(text(t, o), rules)
		if got := places(faults); !slices.Equal(got, c.want) {
			t.Errorf("%s with %.60v at %s: got %q, want %q", c.channel, c.value, c.pointer, got, c.want)
		}
		if r == nil {
			t.Errorf("%s with %.60v at %s: nothing of it was read", c.channel, c.value, c.pointer)
		}
	}
}

// One answer names everything that is wrong.
func TestAllFaultsTogether(t *testing.T) {
	t.Parallel()
	_, faults := order.Decode([]byte(`{
		"cardId": "", "consumerId": 1, "distributionChannel": "POST", "services": {"pinMailer": "yes"},
		"shipment": {"deliveryAddress": {"line1": "a\u0000", "zipCode": "1", "city": "c"}}, "colour": "red",
		"metadata": {"note": "4111 1111 1111 1111"}}`), rules)
	want := []string{
		"/cardId invalid-format", "/cardProductId required", "/colour unknown-member", "/consumerId wrong-type",
		"/distributionChannel invalid-value", "/encryptedData required", "/metadata/note card-number",
		"/paymentApplication required", "/services/issuance required", "/services/pinMailer wrong-type",
		"/shipment/deliveryAddress/countryCode required", "/shipment/deliveryAddress/line1 invalid-character",
	}
	if got := places(faults); !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if message := faults.Error(); !strings.HasPrefix(message, "invalid order: ") || strings.Count(message, ";") != len(want)-1 {
		t.Errorf("as an error: %s", message)
	}
}

// Whatever is not exactly one JSON object is refused, and where the grammar
// broke is told by position.
func TestNotOneObject(t *testing.T) {
	t.Parallel()
	valid := string(golden(t, "instant.json"))
	deep := strings.Repeat("[", 100_000)
	for name, c := range map[string]struct{ text, want string }{
		"nothing":                      {"", " invalid-json"},
		"white space":                  {" \n", " invalid-json"},
		"half":                         {`{"services": {"issuance": "CREA`, "/services/issuance invalid-json"},
		"null":                         {"null", " wrong-type"},
		"a string":                     {`"x"`, " wrong-type"},
		"a number":                     {"1", " wrong-type"},
		"a list":                       {"[" + valid + "]", " wrong-type"},
		"text after":                   {valid + "x", " invalid-json"},
		"an object after":              {valid + valid, " invalid-json"},
		"a byte order mark":            {"\ufeff" + valid, " invalid-json"},
		"a comment":                    {"// order\n" + valid, " invalid-json"},
		"single quotes":                {`{'cardId': 'x'}`, " invalid-json"},
		"a raw control character":      {"{\"cardId\": \"a\nb\"}", "/cardId invalid-json"},
		"invalid UTF-8":                {"{\"cardId\": \"\xff\"}", "/cardId invalid-json"},
		"invalid UTF-8 in a name":      {"{\"\xff\": 1}", " invalid-json"},
		"half a surrogate pair":        {`{"cardId": "\ud800"}`, "/cardId invalid-json"},
		"a member twice":               {`{"cardId": "a", "cardId": "b"}`, "/cardId invalid-json"},
		"a member twice, escaped":      {`{"cardId": "a", "card\u0049d": "b"}`, "/cardId invalid-json"},
		"a member twice, inside":       {`{"services": {"issuance": 1, "issuance": 2}}`, "/services/issuance invalid-json"},
		"a card number over two names": {`{"411111111": {"1111111": 1, "1111111": 2}}`, " invalid-json"},
		"a card number twice":          {`{"4111111111111111": 1, "4111111111111111": 2}`, " invalid-json"},
		"nested deeply":                {deep, " invalid-json"},
		"nested deeply, closed":        {deep + strings.Repeat("]", len(deep)), " invalid-json"},
		"nested deeply in a member":    {`{"metadata": ` + deep, " invalid-json"},
		"nested deeply under a name":   {strings.Repeat(`{"card":`, 100_000), " invalid-json"},
		"a number that is no number":   {`{"cardId": 01}`, " invalid-json"},
		"a card number and a mistake":  {`{"pan": 4111111111111111x}`, " invalid-json"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, faults := order.Decode([]byte(c.text), rules)
			got := places(faults)
			if r != nil || len(got) != 1 || got[0] != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
			if f := faults[0]; len(f.Pointer)+len(f.Detail) > 400 || digitRun(f.Pointer+" "+f.Detail) > 9 {
				t.Errorf("the fault says too much: %+v", f)
			}
		})
	}
}

// Numbers are never read as numbers, so none is too big.
func TestHugeNumbers(t *testing.T) {
	t.Parallel()
	for _, number := range []string{"1e999999999", "-0", strings.Repeat("9", 50_000), "0." + strings.Repeat("1", 50_000)} {
		o := `{"cardId": ` + number + `, "urgent": ` + number + `, "services": ` + number + `, "metadata": {"a": ` + number + `}, "n": ` + number + `}`
		_, faults := order.Decode([]byte(o), rules)
		got := places(faults)
		for _, want := range []string{"/cardId wrong-type", "/metadata/a wrong-type", "/n unknown-member", "/services wrong-type", "/urgent wrong-type"} {
			if !slices.Contains(got, want) {
				t.Errorf("%.20s: got %q, want %q among them", number, got, want)
			}
		}
	}
}

// sensitive is clear card data of a number that no scheme gives out.
func sensitive() object {
	return object{
		"pan": issuerPAN, "exp": "3012", "name": "ALICE EXAMPLE", "cvv2": "123",
		"trackData": object{"track2": issuerPAN + "=30122010000000000000"},
	}
}

func TestCardDataComesOnce(t *testing.T) {
	t.Parallel()
	jwe := sample(t, "thales")["encryptedData"]
	for _, c := range []struct {
		encrypted, clear any
		want             []string
	}{
		{jwe, missing{}, nil},
		{missing{}, sensitive(), nil},
		{nil, sensitive(), nil},
		{jwe, nil, nil},
		{jwe, sensitive(), []string{"/sensitiveData not-allowed"}},
		{missing{}, missing{}, []string{"/encryptedData required"}},
		{nil, nil, []string{"/encryptedData required"}},
	} {
		o := sample(t, "thales")
		set(o, "/encryptedData", c.encrypted)
		set(o, "/sensitiveData", c.clear)
		_, faults := order.Decode(text(t, o), rules)
		if got := places(faults); !slices.Equal(got, c.want) {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
}

func TestSensitiveData(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		value any
		want  []string
	}{
		{"pan", missing{}, []string{"/sensitiveData/pan required"}},
		{"pan", nil, []string{"/sensitiveData/pan required"}},
		{"exp", nil, []string{"/sensitiveData/exp required"}},
		{"pan", issuerPAN, nil},
		{"pan", "9900001232", nil},                                     // 10 digits
		{"pan", visaPAN, []string{"/sensitiveData/pan invalid-value"}}, // another issuer's
		{"pan", "1234567897", []string{"/sensitiveData/pan invalid-value"}},
		{"pan", "12345674", []string{"/sensitiveData/pan invalid-format"}},
		{"pan", "4111111111111112", []string{"/sensitiveData/pan invalid-format"}},
		{"pan", "41111111111111111115", []string{"/sensitiveData/pan invalid-format"}},
		{"pan", "4111 1111 1111 1111", []string{"/sensitiveData/pan invalid-format"}},
		{"pan", 4111111111111111, []string{"/sensitiveData/pan invalid-format"}},
		{"pan", "", []string{"/sensitiveData/pan invalid-format"}},
		{"pan", json.RawMessage(`"411111111111111\u0031"`), []string{"/sensitiveData/pan invalid-format"}}, // digits only, no escapes
		{"exp", "1230", []string{"/sensitiveData/exp invalid-format"}},                                     // MMYY
		{"exp", "3000", []string{"/sensitiveData/exp invalid-format"}},
		{"exp", "301", []string{"/sensitiveData/exp invalid-format"}},
		{"exp", 3012, []string{"/sensitiveData/exp invalid-format"}},
		{"name", missing{}, nil},
		{"cvv1", nil, nil},
		{"cvv1", "123", nil},
		{"cvv1", "1234", []string{"/sensitiveData/cvv1 invalid-format"}},
		{"cvv1", "12x", []string{"/sensitiveData/cvv1 invalid-format"}},
		{"cvv2", "1234", nil},
		{"cvv2", "12", []string{"/sensitiveData/cvv2 invalid-format"}},
		{"cvv2", 123, []string{"/sensitiveData/cvv2 invalid-format"}},
		{"pvv", "1234", nil},
		{"pvv", "12345", nil},
		{"pvv", "123", []string{"/sensitiveData/pvv invalid-format"}},
		{"panSequenceNumber", "00", nil},
		{"panSequenceNumber", "0", []string{"/sensitiveData/panSequenceNumber invalid-format"}},
		{"effectiveDate", "2611", nil},
		{"effectiveDate", "261124", nil},
		{"effectiveDate", "11/26", []string{"/sensitiveData/effectiveDate invalid-format"}},
		{"paymentAccountReference", "V0010013021187712345678901234", nil},
		{"paymentAccountReference", "V001001302118771234567890123", []string{"/sensitiveData/paymentAccountReference invalid-format"}},
		{"paymentAccountReference", "v0010013021187712345678901234", []string{"/sensitiveData/paymentAccountReference invalid-format"}},
		{"encodedName", "EXAMPLE/ALICE", nil},
		{"encodedName", 1, []string{"/sensitiveData/encodedName wrong-type"}},
		{"encodedName", "A\x00", []string{"/sensitiveData/encodedName invalid-character"}},
		{"secondName", "WONDERLAND LTD.", nil},
		{"secondName", "", []string{"/sensitiveData/secondName invalid-format"}},
		{"name", []any{}, []string{"/sensitiveData/name wrong-type"}},
		{"name", visaPAN, []string{"/sensitiveData/name card-number"}},
		{"name", json.RawMessage(`"9900-0012-3456-789\u0039"`), []string{"/sensitiveData/name card-number"}},
		{"trackData", "x", []string{"/sensitiveData/trackData wrong-type"}},
		{"trackData", object{}, nil},
		{"trackData", object{"track1": "B1^A/B^", "track2": "1=", "track3": "1"}, nil},
		{"trackData", object{"track2": 1}, []string{"/sensitiveData/trackData/track2 wrong-type"}},
		{"trackData", object{"track4": "x"}, []string{"/sensitiveData/trackData/track4 unknown-member"}},
		{"trackData", object{visaPAN: "x"}, []string{"/sensitiveData/trackData unknown-member"}},
		{"expirationDate", "x", []string{"/sensitiveData/expirationDate unknown-member"}},
		{"PAN", visaPAN, []string{"/sensitiveData/PAN unknown-member"}},
		{visaPAN, "x", []string{"/sensitiveData unknown-member"}},
		{"pan" + visaPAN, "x", []string{"/sensitiveData unknown-member"}},
		{"1234567897", "x", []string{"/sensitiveData unknown-member"}},
		{"a b", "x", []string{"/sensitiveData unknown-member"}},
	} {
		o := sample(t, "thales")
		delete(o, "encryptedData")
		o["sensitiveData"] = sensitive()
		set(o, "/sensitiveData/"+c.name, c.value)
		_, faults := order.Decode(text(t, o), rules)
		if got := places(faults); !slices.Equal(got, c.want) {
			t.Errorf("%v as %s: got %q, want %q", c.value, c.name, got, c.want)
		}
	}
	for _, value := range []any{visaPAN, []any{visaPAN}, true, 4111111111111111} {
		o := sample(t, "thales")
		o["encryptedData"], o["sensitiveData"] = nil, value
		_, faults := order.Decode(text(t, o), rules)
		if got := places(faults); !slices.Equal(got, []string{"/sensitiveData wrong-type"}) {
			t.Errorf("%v: got %q", value, got)
		}
	}
}

func TestIndividualAddressBySetting(t *testing.T) {
	t.Parallel()
	must := &order.Rules{Guard: guard, IndividualAddress: true}
	for _, c := range []struct {
		channel, pointer string
		value            any
		want             []string
	}{
		{"instant", "/urgent", false, nil},
		{"instant", "/shipment/individualAddress", missing{}, []string{"/shipment/individualAddress required"}},
		{"central", "/urgent", false, []string{"/shipment/individualAddress required"}},
		{"central", "/shipment", missing{}, nil},
		{"thales", "/shipment/individualAddress", missing{}, nil}, // BULK
	} {
		o := sample(t, c.channel)
		set(o, c.pointer, c.value)
		_, faults := order.Decode(text(t, o), must)
		if got := places(faults); !slices.Equal(got, c.want) {
			t.Errorf("%s with %v at %s: got %q, want %q", c.channel, c.value, c.pointer, got, c.want)
		}
	}
}

func TestWarnings(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		channel, pointer string
		value            any
		want             []string
	}{
		{"thales", "/state", missing{}, []string{"deprecated-member:oldCardId"}},
		{"thales", "/oldCardId", nil, []string{"deprecated-member:state"}},
		{"thales", "/services/delivery", missing{}, []string{"deprecated-member:state", "deprecated-member:oldCardId", "shipment-without-delivery"}},
		{"thales", "/services/delivery", "NO_SHIPMENT", []string{"deprecated-member:state", "deprecated-member:oldCardId", "shipment-without-delivery"}},
		{"central", "/urgent", true, nil}, // the centre is not D1's: what it ships is its own affair
	} {
		o := sample(t, c.channel)
		set(o, c.pointer, c.value)
		if got := wellFormed(t, text(t, o)).Warnings; !slices.Equal(got, c.want) {
			t.Errorf("%s with %v at %s: got %q, want %q", c.channel, c.value, c.pointer, got, c.want)
		}
	}
}

// A row of a batch is an order with a key of its own, and without card data in
// clear.
func TestDecodeRow(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		key, request any
		wantKey      string
		want         []string
	}{
		{"key~1", "req-1", "key~1", nil},
		{"key~1", missing{}, "key~1", nil},
		{missing{}, "req-1", "", nil},
		{nil, "req-1", "", nil},
		{missing{}, missing{}, "", []string{"/issuerRequestId required"}},
		{nil, nil, "", []string{"/issuerRequestId required"}},
		{"a b", missing{}, "", []string{"/idempotencyKey invalid-format"}},
		{"", "req-1", "", []string{"/idempotencyKey invalid-format"}},
		{1, "req-1", "", []string{"/idempotencyKey wrong-type"}},
		{issuerPAN, "req-1", "", []string{"/idempotencyKey card-number"}},
		{"key~1", "a b", "key~1", []string{"/issuerRequestId invalid-format"}},
	} {
		o := sample(t, "thales")
		set(o, "/idempotencyKey", c.key)
		set(o, "/issuerRequestId", c.request)
		r, key, faults := order.DecodeRow(text(t, o), rules)
		if got := places(faults); !slices.Equal(got, c.want) || key != c.wantKey {
			t.Errorf("%v and %v: got %q %q, want %q %q", c.key, c.request, key, got, c.wantKey, c.want)
		}
		if faults != nil {
			continue
		}
		delete(o, "idempotencyKey")
		single := wellFormed(t, text(t, o))
		if !reflect.DeepEqual(r, single) {
			t.Errorf("%v and %v: a row is not the order that it holds", c.key, c.request)
		}
	}
	for _, c := range []struct {
		encrypted, clear any
		want             []string
	}{
		{nil, sensitive(), []string{"/encryptedData required", "/sensitiveData not-allowed"}},
		{"a.b.c.d.e", sensitive(), []string{"/sensitiveData not-allowed"}},
		{"a.b.c.d.e", object{"pan": 1, visaPAN: 2}, []string{"/sensitiveData not-allowed"}},
		{"a.b.c.d.e", nil, nil},
		{missing{}, nil, []string{"/encryptedData required"}},
	} {
		o := sample(t, "thales")
		set(o, "/encryptedData", c.encrypted)
		set(o, "/sensitiveData", c.clear)
		r, _, faults := order.DecodeRow(text(t, o), rules)
		if got := places(faults); !slices.Equal(got, c.want) || r != nil && r.SensitiveData != nil {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
	if _, _, faults := order.DecodeRow([]byte(`{"a":`), rules); !slices.Equal(places(faults), []string{"/a invalid-json"}) {
		t.Errorf("got %v", faults)
	}
}

// Whatever fits into a request costs little, and its answer stays short. Not in
// parallel: what other tests allocate would count.
func TestHostileInputIsBounded(t *testing.T) {
	const size = 128 << 10
	fill := func(before, part, after string) string {
		return before + strings.Repeat(part, (size-len(before)-len(after))/len(part)) + after
	}
	var names strings.Builder
	for i := 0; names.Len() < size-100; i++ {
		fmt.Fprintf(&names, `"%c%c%c%c":1,`, 'a'+i%26, 'a'+i/26%26, 'a'+i/676%26, 'a'+i/17576)
	}
	for name, text := range map[string]string{
		"members":             "{" + names.String() + `"z":1}`,
		"members of metadata": `{"metadata":{` + names.String() + `"z":1}}`,
		"members of a secret": `{"sensitiveData":{` + names.String() + `"z":1}}`,
		"depth":               strings.Repeat(`{"a":`, 9000) + "1" + strings.Repeat("}", 9000),
		"elements":            fill(`{"cardDesign":{"images":[`, "1,", "1]}}"),
		"escapes":             fill(`{"cardId":"`, `\u0041`, `"}`),
		"a number":            fill(`{"cardId":`, "9", "}"),
		"digits":              fill(`{"metadata":{"a":"`, "4 ", `1"}}`),
		"white space":         fill("{", " ", "}"),
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, faults := order.Decode([]byte(text), rules)
		runtime.ReadMemStats(&after)
		if used := after.TotalAlloc - before.TotalAlloc; used > 100*size {
			t.Errorf("%s: %d bytes for %d", name, used, len(text))
		}
		if last := faults[len(faults)-1]; len(faults) > 200 && (len(faults) > 201 || last.Code != order.CodeTooMany || last.Pointer != "") {
			t.Errorf("%s: %d faults, the last one %+v", name, len(faults), last)
		}
	}
}

// Clear card data exists once: clearing the request's buffer clears it, and
// the rest of the order does not depend on the buffer.
func TestSensitiveDataIsPartOfTheText(t *testing.T) {
	t.Parallel()
	o := sample(t, "thales")
	delete(o, "encryptedData")
	o["sensitiveData"] = sensitive()
	buffer := append([]byte(" \n"), text(t, o)...)
	r := wellFormed(t, buffer)
	if want := text(t, sensitive()); !bytes.Equal(r.SensitiveData, want) {
		t.Fatalf("got %d bytes, want %d", len(r.SensitiveData), len(want))
	}
	if cap(r.SensitiveData) != len(r.SensitiveData) {
		t.Error("appending to the card data would write into the text")
	}
	before, err := r.Production.Body()
	if err != nil {
		t.Fatal(err)
	}
	canonical := bytes.Clone(r.Canonical)
	clear(buffer)
	if len(bytes.Trim(r.SensitiveData, "\x00")) > 0 {
		t.Error("a copy of the card data outlives the buffer")
	}
	after, err := r.Production.Body()
	if err != nil || !bytes.Equal(before, after) || !bytes.Equal(canonical, r.Canonical) || r.CardID != "card-0001" || r.Metadata["branch"] != "Zurich 4" {
		t.Error("clearing the buffer changed the order")
	}
	for _, out := range [][]byte{before, canonical} {
		if bytes.Contains(out, []byte(issuerPAN)) || bytes.Contains(out, []byte("ALICE")) {
			t.Errorf("card data where none belongs: %s", out)
		}
	}
}

// No fault repeats a value, wherever it stood and whatever was wrong with it.
func TestNoFaultRepeatsAValue(t *testing.T) {
	t.Parallel()
	const marker, number = "mArKeR", 8234567
	values := []any{
		marker, " " + marker, marker + "\x00", "\n" + marker, strings.Repeat(marker, 2000), number, -number, float64(number) / 1e3,
		[]any{marker}, []any{number, []any{marker}}, object{"a": marker}, object{"a": object{"b": marker}}, true, nil, "",
		visaPAN, issuerPAN, "3782 822463 10005", 4111111111111111, []any{visaPAN}, object{"a": issuerPAN},
		object{visaPAN: marker}, object{issuerPAN: "x"}, object{"pan" + visaPAN: "x\x00"}, object{"4111-1111-1111-1111": 1},
	}
	check := func(t *testing.T, text []byte) {
		t.Helper()
		_, faults := order.Decode(text, rules)
		for _, f := range faults {
			all := f.Pointer + " | " + f.Detail
			if strings.Contains(all, marker) || strings.Contains(all, "8234") || digitRun(all) > 9 {
				t.Errorf("%+v repeats a value of %.200s", f, text)
			}
			if f.Code == "" || f.Detail == "" {
				t.Errorf("%+v says nothing", f)
			}
		}
	}
	full := sample(t, "thales")
	full["persoStation"], full["sensitiveData"], full["unknown"] = "s", sensitive(), "x"
	all := pointers(full)
	for _, pointer := range all {
		for _, value := range values {
			o := clone(t, full)
			set(o, pointer, value)
			check(t, text(t, o))
			// And with broken grammar after it.
			check(t, append(text(t, o), '"'))
			whole := text(t, o)
			check(t, whole[:len(whole)-1])
		}
	}
	// Many at once.
	rapid.Check(t, func(rt *rapid.T) {
		o := clone(t, full)
		for range rapid.IntRange(1, 30).Draw(rt, "changes") {
			pointer := rapid.SampledFrom(all).Draw(rt, "pointer")
			if slices.Contains(pointers(o), pointer) {
				set(o, pointer, clone(t, rapid.SampledFrom(values).Draw(rt, "value")))
			}
		}
		b := text(t, o)
		check(t, b[:rapid.IntRange(len(b)*3/4, len(b)).Draw(rt, "length")])
	})
}

// The canonical form is the same however the same order is written.
func TestCanonicalIgnoresForm(t *testing.T) {
	t.Parallel()
	o := sample(t, "thales")
	// What needs escapes, and names that are not compared where they are ours.
	set(o, "/metadata", object{"z": "", "encryptedData": "a\"b\\c/\u2028<&>\u00e9😀", "idempotencyKey": "k", "Z": "é"})
	set(o, "/metadata/z", "z")
	set(o, "/cardDesign/images", nil)
	want := wellFormed(t, text(t, o)).Canonical
	rapid.Check(t, func(rt *rapid.T) {
		o := clone(t, o)
		switch rapid.IntRange(0, 2).Draw(rt, "card data") {
		case 0:
			o["encryptedData"] = "other.b.c.d.e"
		case 1:
			delete(o, "encryptedData")
			o["sensitiveData"] = sensitive()
		}
		set(o, "/duplicateOverride", rapid.SampledFrom([]any{missing{}, nil, object{"reason": "other"}}).Draw(rt, "override"))
		var b strings.Builder
		write(rt, &b, o)
		got := wellFormed(t, []byte(b.String())).Canonical
		if !bytes.Equal(got, want) {
			rt.Errorf("got  %s\nwant %s\nof %s", got, want, b.String())
		}
		for _, name := range []string{"encryptedData", "sensitiveData", "duplicateOverride"} {
			delete(o, name)
		}
		if reference := jsontext.Value(text(t, o)); reference.Canonicalize() != nil || !bytes.Equal(got, reference) {
			rt.Errorf("got      %s\nRFC 8785 %s", got, reference)
		}
	})
}

// write writes v as JSON with members in any order, white space anywhere and
// any character of a string escaped.
func write(t *rapid.T, b *strings.Builder, v any) {
	space := func() {
		b.WriteString(rapid.SampledFrom([]string{"", "", " ", "\n\t", "\r\n"}).Draw(t, "space"))
	}
	space()
	switch v := v.(type) {
	case object:
		b.WriteByte('{')
		for i, name := range rapid.Permutation(slices.Sorted(maps.Keys(v))).Draw(t, "order") {
			if i > 0 {
				b.WriteByte(',')
			}
			write(t, b, name)
			b.WriteByte(':')
			if name == "sensitiveData" { // not to be escaped: it is never decoded
				b.Write(must(json.Marshal(v[name])))
			} else {
				write(t, b, v[name])
			}
		}
		space()
		b.WriteByte('}')
	case []any:
		b.WriteByte('[')
		for i, element := range v {
			if i > 0 {
				b.WriteByte(',')
			}
			write(t, b, element)
		}
		space()
		b.WriteByte(']')
	case string:
		b.WriteByte('"')
		escape := rapid.IntRange(-1, max(0, len(v)-1)).Draw(t, "escape")
		for i, r := range v {
			if (i == escape || r == '"' || r == '\\') && r < 0x10000 {
				const hex = "0123456789aBcDeF"
				b.WriteString(`\u`)
				for shift := 12; shift >= 0; shift -= 4 {
					b.WriteByte(hex[r>>shift&0xf])
				}
			} else {
				b.WriteRune(r)
			}
		}
		b.WriteByte('"')
	default:
		b.Write(must(json.Marshal(v)))
	}
	space()
}

func must(b []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return b
}

// An order that is mostly spaces keeps no more than its members: many may wait to be
// stored together.
func TestSpacesAreNotKept(t *testing.T) { //nolint:paralleltest // it measures memory
	padded := append(text(t, sample(t, "thales")), bytes.Repeat([]byte(" "), 128<<10)...)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	wellFormed(t, padded)
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; used > 96<<10 {
		t.Errorf("%d bytes for %d", used, len(padded))
	}
}

// What was taken by the rules of its day is recognised by those of today; what never
// could be taken is not.
func TestCanonicalWithFaults(t *testing.T) {
	t.Parallel()
	o := sample(t, "thales")
	taken := wellFormed(t, text(t, o))
	within := agreement(agreed())
	within.Programs = map[string]*order.Program{} // nothing is agreed any more
	if r, faults := order.Decode(text(t, o), within); len(faults) == 0 || !bytes.Equal(r.Canonical, taken.Canonical) {
		t.Errorf("%v: %s", faults, r.Canonical)
	}
	for name, value := range map[string]any{
		"metadata": object{`a":"x","b`: "y"}, "unknown": 1, "urgent": "yes", "consumerId": issuerPAN,
		"packagingConfig": object{"inserts": make([]string, 21)},
	} {
		o := sample(t, "thales")
		set(o, "/"+name, value)
		if r, faults := order.Decode(text(t, o), rules); len(faults) == 0 || r.Canonical != nil {
			t.Errorf("%s: %v, %s", name, faults, r.Canonical)
		}
	}
}

// Any other difference makes another order.
func TestCanonicalSeesEveryDifference(t *testing.T) {
	t.Parallel()
	full := sample(t, "thales")
	seen := map[string]string{} // by canonical form
	add := func(o object) {
		r, faults := order.Decode(text(t, o), rules)
		if faults != nil {
			return // not an order at all
		}
		content := string(text(t, o)) // with sorted names
		if other, ok := seen[string(r.Canonical)]; ok && other != content {
			t.Errorf("%s\nlooks the same as\n%s", content, other)
		}
		seen[string(r.Canonical)] = content
	}
	delete(full, "duplicateOverride")
	add(full)
	for _, pointer := range pointers(full) {
		if pointer == "/encryptedData" {
			continue
		}
		for _, value := range []any{missing{}, nil, "other", "FR", "it", "+15550000000", "0190d3a2-7c1e-7b44-9c55-3f1f6d2a8e02", "CREATION", true, false, []any{}, []any{"other"}, object{}} {
			o := clone(t, full)
			set(o, pointer, value)
			add(o)
		}
	}
	// The order of a list counts: the lines stand on the card in this order.
	swapped := clone(t, full)
	set(swapped, "/cardDesign/customLines", []any{"Member since 2019", "ZOË DÜRST"})
	add(swapped)
	if len(seen) < 100 {
		t.Errorf("only %d different orders were tried", len(seen))
	}
}

func TestIdempotencyKey(t *testing.T) {
	t.Parallel()
	for key, ok := range map[string]bool{
		"k": true, "~!a/b:c": true, strings.Repeat("k", 128): true,
		"": false, strings.Repeat("k", 129): false, "a b": false, "a\x00": false, "é": false, "a\x7f": false, "\t": false,
	} {
		if detail := order.IdempotencyKey(key); (detail == "") != ok {
			t.Errorf("%q: %q", key, detail)
		}
	}
}
