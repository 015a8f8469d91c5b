package order

import (
	"bytes"

	"github.com/go-json-experiment/json/jsontext"
)

// Limits of what a request may carry besides D1's members.
const (
	maxMetadata = 20
	maxList     = 20
)

// Decode reads an order as core banking sends it. It returns every fault there
// is, not the first. The returned request refers to text (SensitiveData), and
// the caller clears text when the order carries card data in clear.
func Decode(text []byte, rules *Rules) (*Request, Faults) {
	d := &document{text: text, guard: rules.Guard}
	root, ok := d.root()
	if !ok {
		return nil, d.faults
	}
	r := &Request{
		CardID:   root.need("cardId", cardID),
		Metadata: root.strings("metadata", maxMetadata, memberName, metadataValue),
		Urgent:   root.flag("urgent"),
	}
	if o, ok := root.object("duplicateOverride"); ok {
		r.DuplicateOverride = o.need("reason", overrideReason)
		o.close()
	}
	if value, ok := root.take("sensitiveData"); ok {
		d.sensitiveData(value)
		r.SensitiveData = value
	}
	r.Production = decodeProduction(&root)
	switch encrypted, inClear := root.has("encryptedData"), root.has("sensitiveData"); {
	case encrypted && inClear:
		d.fault("/sensitiveData", CodeNotAllowed, "exactly one of encryptedData and sensitiveData is allowed")
	case !encrypted && !inClear:
		d.fault("/encryptedData", CodeRequired, "exactly one of encryptedData and sensitiveData is required")
	}
	root.close()
	for _, name := range []string{"state", "oldCardId"} {
		if root.has(name) {
			r.Warnings = append(r.Warnings, "deprecated-member:"+name)
		}
	}
	if len(d.faults) > 0 {
		return nil, d.faults
	}
	r.EndsAt = r.Production.EndsAt()
	r.Canonical = canonical(root.members)
	return r, nil
}

func decodeProduction(root *object) Production {
	p := Production{
		ConsumerID:      root.need("consumerId", consumerID),
		CardProductID:   root.need("cardProductId", cardProductID),
		IssuerRequestID: root.text("issuerRequestId", issuerRequestID),
		Channel: Channel(root.need("distributionChannel",
			oneOf(string(ChannelThales), string(ChannelInstant), string(ChannelCentral)))),
		EncryptedData: root.text("encryptedData", encryptedData),
		PersoStation:  root.text("persoStation", agreedID),
		State:         root.text("state", agreedID),
		OldCardID:     root.text("oldCardId", cardID),
	}
	if o, ok := root.object("services"); ok {
		p.Services = Services{
			Issuance: Issuance(o.need("issuance",
				oneOf(string(IssuanceCreation), string(IssuanceRenewal), string(IssuanceReplacement)))),
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
	}
	if o, ok := root.object("shipment"); ok {
		p.Shipment = decodeShipment(&o)
		o.close()
	}
	channelRules(root, &p)
	return p
}

func decodeShipment(o *object) *Shipment {
	s := &Shipment{
		Type:              o.text("type", oneOf(ShipmentIndividual, ShipmentBulk)),
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
		FirstName:         o.text("firstName", addressText),
		LastName:          o.text("lastName", addressText),
		CompanyName:       o.text("companyName", addressText),
		Line1:             o.need("line1", addressText),
		Line2:             o.text("line2", addressText),
		Line3:             o.text("line3", addressText),
		ZipCode:           o.need("zipCode", addressText),
		City:              o.need("city", addressText),
		State:             o.text("state", addressText),
		CountryCode:       o.need("countryCode", countryCode),
		MobilePhoneNumber: o.text("mobilePhoneNumber", addressText),
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

// notCompared are the members that two requests may differ in and still be the
// same order: a JWE differs each time it is made, and the override is about
// the sending, not about what is asked for.
var notCompared = map[string]bool{"encryptedData": true, "sensitiveData": true, "duplicateOverride": true}

// canonical writes members as RFC 8785 JSON without those that are not compared.
func canonical(members []member) []byte {
	var b bytes.Buffer
	b.WriteByte('{')
	for _, m := range members {
		if notCompared[m.name] {
			continue
		}
		if b.Len() > 1 {
			b.WriteByte(',')
		}
		name, _ := jsontext.AppendQuote(nil, m.name)
		b.Write(name)
		b.WriteByte(':')
		b.Write(m.value)
	}
	b.WriteByte('}')
	value := jsontext.Value(b.Bytes())
	if err := value.Canonicalize(); err != nil {
		panic("order: the grammar was checked before: " + err.Error())
	}
	return value
}
