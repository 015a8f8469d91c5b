package order

import (
	"bytes"
	"slices"
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

// Limits of what a request may carry besides D1's members.
const (
	maxMetadata = 20
	maxList     = 20
)

// MaxWait is for how long an order can be kept back by its notBefore.
const MaxWait = 90 * 24 * time.Hour

// CheckNotBefore tells whether a notBefore is within what can be waited for; one that has
// passed is as none.
func (r *Request) CheckNotBefore(now time.Time, faults Faults) Faults {
	if r == nil || !r.NotBefore.After(now.Add(MaxWait)) {
		return faults
	}
	return append(faults, Fault{Pointer: "/notBefore", Code: CodeInvalidValue, Detail: "must be within 90 days"})
}

// Decode reads an order as core banking sends it. It returns every fault there
// is, not the first. With faults the request is what could be read of it, nil
// when text is not a JSON object. The request refers to text (SensitiveData), and
// the caller clears text when the order carries card data in clear.
func Decode(text []byte, rules *Rules) (*Request, Faults) {
	d := newDocument(text, rules)
	defer d.release()
	root, ok := d.root()
	if !ok {
		return nil, d.faults
	}
	return d.order(&root, false)
}

// DecodeRow reads one order of a batch: as Decode, with the row's own
// idempotency key beside it, and with card data as a JWE only.
func DecodeRow(text []byte, rules *Rules) (r *Request, key string, faults Faults) {
	d := newDocument(text, rules)
	defer d.release()
	root, ok := d.root()
	if !ok {
		return nil, "", d.faults
	}
	key = root.text("idempotencyKey", idempotencyKey)
	if !root.has("idempotencyKey") && !root.has("issuerRequestId") {
		d.fault("/issuerRequestId", CodeRequired, "a row needs an issuerRequestId, an idempotencyKey, or both")
	}
	r, faults = d.order(&root, true)
	return r, key, faults
}

func (d *document) order(root *object, row bool) (*Request, Faults) {
	r := &Request{
		CardID:          root.need("cardId", cardID),
		Metadata:        root.strings("metadata", maxMetadata, memberName, metadataValue),
		Urgent:          root.flag("urgent"),
		ReplacesOrderID: root.text("replacesOrderId", canonicalUUID),
		Hold:            root.flag("hold"),
	}
	if text := root.text("notBefore", instant); text != "" {
		r.NotBefore, _ = time.Parse(time.RFC3339, text) // it was checked
	}
	if o, ok := root.object("duplicateOverride"); ok {
		r.DuplicateOverride = o.need("reason", overrideReason)
		o.close()
	}
	d.production(root, &r.Production)
	r.SensitiveData = d.cardData(root, row)
	d.checkProgram(&r.Production)
	root.close()
	if !slices.ContainsFunc(d.faults, neverTaken) {
		r.Canonical = d.canonical(root.members)
	}
	if len(d.faults) > 0 {
		return r, d.faults
	}
	for _, name := range []string{"state", "oldCardId"} {
		if root.has(name) {
			r.Warnings = append(r.Warnings, warningDeprecated+name)
		}
	}
	if delivery := r.Production.Services.Delivery; r.Production.Channel == ChannelThales && (delivery == "" || delivery == NoShipment) {
		r.Warnings = append(r.Warnings, warningWithoutDelivery)
	}
	if r.EndsAt = r.Production.EndsAt(); d.program != nil && d.program.EndsAt != "" {
		r.EndsAt = d.program.EndsAt
	}
	return r, nil
}

// neverTaken tells of a fault that no order was ever taken with, whatever the rules
// of its day. What is compared is then not worth writing, and a card number not to
// be copied.
func neverTaken(f Fault) bool {
	switch f.Code {
	case CodeUnknownMember, CodeWrongType, CodeTooMany, CodeCardNumber:
		return true
	}
	return f.Pointer == "/metadata" // its names
}

// cardData makes sure that card data comes once, and returns what came in clear.
func (d *document) cardData(root *object, row bool) (inClear []byte) {
	encrypted := root.has("encryptedData")
	value, ok := root.take("sensitiveData")
	switch {
	case ok && row:
		d.fault("/sensitiveData", CodeNotAllowed, "card data in clear is not taken in batches")
	case ok:
		d.sensitiveData(value)
		if encrypted {
			d.fault("/sensitiveData", CodeNotAllowed, "exactly one of encryptedData and sensitiveData is allowed")
		}
		return d.text[value.from:value.to:value.to]
	}
	if !encrypted {
		detail := "exactly one of encryptedData and sensitiveData is required"
		if row {
			detail = "is required"
		}
		d.fault("/encryptedData", CodeRequired, "%s", detail)
	}
	return nil
}

func (d *document) production(root *object, p *Production) {
	*p = Production{
		ConsumerID:      root.need("consumerId", consumerID),
		CardProductID:   root.need("cardProductId", cardProductID),
		IssuerRequestID: root.text("issuerRequestId", issuerRequestID),
		Channel:         Channel(root.need("distributionChannel", channel)),
		EncryptedData:   root.text("encryptedData", encryptedData),
		PersoStation:    root.text("persoStation", agreedID),
		State:           root.text("state", agreedID),
		OldCardID:       root.text("oldCardId", cardID),
	}
	d.program = d.rules.Programs[p.CardProductID] // before the names, which it has a say in
	if o, ok := root.object("services"); ok {
		p.Services = Services{
			Issuance:    Issuance(o.need("issuance", issuance)),
			Priority:    o.text("priority", agreedID),
			Delivery:    o.text("delivery", agreedID),
			CardCarrier: o.text("cardCarrier", agreedID),
			Packaging:   o.text("packaging", agreedID),
			PinMailer:   o.flag("pinMailer"),
			AlphaCard:   o.flag("alphaCard"),
		}
		o.close()
	} else if !root.has("services") {
		root.require("services")
	}
	if o, ok := root.object("paymentApplication"); ok {
		p.PaymentApplication = &PaymentApplication{
			Config:             o.need("config", agreedID),
			ODAKeyIndex:        o.need("odaKeyIndex", agreedID),
			DerivationKeyIndex: o.need("derivationKeyIndex", agreedID),
			CVKeyIndex:         o.text("cvKeyIndex", agreedID),
			PVKeyIndex:         o.text("pvKeyIndex", agreedID),
		}
		o.close()
	} else if !root.has("paymentApplication") {
		root.require("paymentApplication")
	}
	if o, ok := root.object("cardDesign"); ok {
		p.CardDesign = &CardDesign{
			CardImage:   o.text("cardImage", printedLine),
			Images:      o.list("images", printedLine),
			CustomLines: o.list("customLines", printedLine),
			MemberID:    o.text("memberId", printedLine),
		}
		o.close()
	}
	if o, ok := root.object("cardCarrierConfig"); ok {
		p.CardCarrierConfig = &CardCarrierConfig{
			Language:    o.text("language", language),
			Images:      o.list("images", printedLine),
			CustomLines: o.list("customLines", printedLine),
		}
		o.close()
	}
	if o, ok := root.object("packagingConfig"); ok {
		p.PackagingConfig = &PackagingConfig{Inserts: o.list("inserts", agreedID)}
		o.close()
		packaging := p.Services.Packaging
		if len(p.PackagingConfig.Inserts) > 0 && (packaging == "" || packaging == noPack) && !d.faulty("/services") && !d.faulty("/services/packaging") {
			d.fault("/packagingConfig/inserts", CodeNotAllowed, "needs a services.packaging to be put into")
		}
	}
	if o, ok := root.object("shipment"); ok {
		p.Shipment = decodeShipment(&o)
		o.close()
	}
	channelRules(root, p)
}

func decodeShipment(o *object) *Shipment {
	s := &Shipment{
		Type:              o.text("type", shipmentType),
		DeliveryAddress:   decodeAddress(o, "deliveryAddress"),
		IndividualAddress: decodeAddress(o, "individualAddress"),
		GroupID:           o.text("groupId", agreedID),
		OrderID:           o.text("orderId", agreedID),
	}
	if !o.has("deliveryAddress") {
		o.require("deliveryAddress")
	}
	if !o.has("type") {
		s.Type = ShipmentIndividual // D1's default
	}
	if s.Type == ShipmentIndividual {
		for _, name := range []string{"groupId", "orderId"} {
			if o.has(name) {
				o.d.fault(o.at(name), CodeNotAllowed, "is for a BULK shipment only")
			}
		}
		if o.d.rules.IndividualAddress && !o.has("individualAddress") {
			o.require("individualAddress")
		}
	}
	return s
}

func decodeAddress(parent *object, name string) *Address {
	o, ok := parent.object(name)
	if !ok {
		return nil
	}
	defer o.close()
	return &Address{
		Title:             o.text("title", addressText),
		FirstName:         o.text("firstName", personName),
		LastName:          o.text("lastName", personName),
		CompanyName:       o.text("companyName", addressText),
		Line1:             o.need("line1", addressText),
		Line2:             o.text("line2", addressText),
		Line3:             o.text("line3", addressText),
		ZipCode:           o.need("zipCode", addressText),
		City:              o.need("city", addressText),
		State:             o.text("state", addressText),
		CountryCode:       o.need("countryCode", countryCode),
		MobilePhoneNumber: o.text("mobilePhoneNumber", phoneNumber),
	}
}

// channelRules checks what D1 wants of each channel (D1: oneOf by
// distributionChannel).
func channelRules(root *object, p *Production) {
	switch p.Channel {
	case ChannelThales:
		if !root.has("shipment") {
			root.require("shipment")
		}
	case ChannelInstant:
		if !root.has("persoStation") {
			root.require("persoStation")
		}
	}
	if p.Channel != "" && p.Channel != ChannelInstant && root.has("persoStation") {
		root.d.fault("/persoStation", CodeNotAllowed, "is for the INSTANT channel only")
	}
}

// isCompared tells whether two requests that differ in a member are different
// orders. A JWE differs each time it is made, the override is about the sending,
// not about what is asked for, and a key is compared by itself.
func isCompared(name []byte) bool {
	switch string(name) {
	case "encryptedData", "sensitiveData", "duplicateOverride", "idempotencyKey":
		return false
	}
	return true
}

// canonical writes the members that are compared as RFC 8785 JSON. An order that may
// ever have been taken holds no numbers, and its names are ASCII without escapes.
func (d *document) canonical(members []member) []byte {
	first, size := len(d.members), len(d.text)
	for _, m := range members {
		if isCompared(m.name) {
			d.members = append(d.members, m)
		} else {
			size -= m.value.to - m.value.from
		}
	}
	return d.appendObject(make([]byte, 0, min(size, maxKept)), d.members[first:len(d.members):len(d.members)])
}

func (d *document) appendObject(b []byte, members []member) []byte {
	slices.SortFunc(members, func(a, b member) int { return bytes.Compare(a.name, b.name) })
	b = append(b, '{')
	first := len(b)
	for _, m := range members {
		if len(b) > first {
			b = append(b, ',')
		}
		b = append(b, '"')
		b = append(b, m.name...)
		b = append(b, '"', ':')
		b = d.appendValue(b, m.value)
	}
	return append(b, '}')
}

func (d *document) appendValue(b []byte, value span) []byte {
	switch d.text[value.from] {
	case '{':
		o, _ := d.object("", value)
		return d.appendObject(b, o.members)
	case '[':
		b = append(b, '[')
		first := len(b)
		for i := d.space(value.from + 1); d.text[i] != ']'; {
			if len(b) > first {
				b = append(b, ',')
			}
			element := span{i, d.valueEnd(i)}
			b = d.appendValue(b, element)
			if i = d.space(element.to); d.text[i] == ',' {
				i = d.space(i + 1)
			}
		}
		return append(b, ']')
	case '"':
		if raw := d.text[value.from:value.to]; bytes.IndexByte(raw, '\\') < 0 {
			return append(b, raw...)
		}
		b, _ = jsontext.AppendQuote(b, d.unquoted(value)) // valid UTF-8
		return b
	}
	return append(b, d.text[value.from:value.to]...)
}
