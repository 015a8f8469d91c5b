package d1sim

import (
	"regexp"
	"strings"
)

const (
	channelThales  = "THALES"
	channelInstant = "INSTANT"
	channelCentral = "CENTRAL"
)

const (
	maxEncryptedData = 8192 // characters
	maxAddressPart   = 64   // characters
)

var (
	languagePattern = regexp.MustCompile(`^[a-z]{2}$`)           // ISO 639-1
	phonePattern    = regexp.MustCompile(`^\+[1-9][0-9]{6,14}$`) // E.164
	statePattern    = regexp.MustCompile(`^[A-Z][A-Z_]{0,31}$`)  // deprecated; absent means ACTIVE
	countries       = strings.Fields(countryCodes)               // ISO 3166-1 alpha-2
)

// checkOrder checks the body of an order by its channel and tells the first fault.
func checkOrder(body map[string]any, set Settings) *fault {
	channel := body["distributionChannel"] // missing or unknown: the first fault found below
	byGuide := !set.ConsumerAndProductOptional

	members := []member{
		required("distributionChannel", among(channelThales, channelInstant, channelCentral)),
		optional("issuerRequestId", matching(requestIDPattern)),
		{"consumerId", byGuide, matching(consumerPattern)},
		{"cardProductId", byGuide, matching(productPattern)},
		required("services", services),
		required("encryptedData", text(maxEncryptedData)),
		required("paymentApplication", paymentApplication),
		optional("cardDesign", cardDesign),
		optional("cardCarrierConfig", cardCarrierConfig),
		optional("packagingConfig", packagingConfig),
		{"shipment", channel == channelThales, shipment(set)},
		optional("state", matching(statePattern)),
		optional("oldCardId", matching(cardIDPattern)),
	}
	if channel == channelInstant {
		members = append(members, required("persoStation", anyText))
	}
	return object(members...)("", body)
}

var services = object(
	required("issuance", among("CREATION", "RENEWAL", "REPLACEMENT")),
	optional("priority", anyText),
	optional("delivery", anyText),
	optional("cardCarrier", anyText),
	optional("packaging", anyText),
	optional("pinMailer", boolean),
	optional("alphaCard", boolean),
)

var paymentApplication = object(
	optional("config", anyText),
	optional("odaKeyIndex", anyText),
	optional("derivationKeyIndex", anyText),
	optional("cvKeyIndex", anyText),
	optional("pvKeyIndex", anyText),
)

var cardDesign = object(
	optional("cardImage", anyText),
	optional("images", texts),
	optional("customLines", texts),
	optional("memberId", anyText),
)

var cardCarrierConfig = object(
	optional("language", matching(languagePattern)),
	optional("images", texts),
	optional("customLines", texts),
)

var packagingConfig = object(
	optional("inserts", texts),
)

var address = object(
	required("line1", text(maxAddressPart)),
	required("zipCode", text(maxAddressPart)),
	required("city", text(maxAddressPart)),
	required("countryCode", among(countries...)),
	optional("title", text(maxAddressPart)),
	optional("firstName", text(maxAddressPart)),
	optional("lastName", text(maxAddressPart)),
	optional("companyName", text(maxAddressPart)),
	optional("line2", text(maxAddressPart)),
	optional("line3", text(maxAddressPart)),
	optional("state", text(maxAddressPart)),
	optional("mobilePhoneNumber", matching(phonePattern)),
)

// shipment checks by type, INDIVIDUAL when absent: the two containers are for BULK only.
func shipment(set Settings) check {
	return func(field string, value any) *fault {
		members := []member{
			optional("type", among("INDIVIDUAL", "BULK")),
			required("deliveryAddress", address),
		}
		parts, _ := value.(map[string]any)
		if parts["type"] == "BULK" {
			members = append(members, optional("individualAddress", address),
				optional("groupId", anyText), optional("orderId", anyText))
		} else {
			members = append(members, member{"individualAddress", set.RequireIndividualAddress, address})
		}
		return object(members...)(field, value)
	}
}

// countryCodes is ISO 3166-1 alpha-2, officially assigned.
const countryCodes = `
AD AE AF AG AI AL AM AO AQ AR AS AT AU AW AX AZ BA BB BD BE BF BG BH BI BJ BL BM BN BO BQ BR BS BT BV BW BY BZ
CA CC CD CF CG CH CI CK CL CM CN CO CR CU CV CW CX CY CZ DE DJ DK DM DO DZ EC EE EG EH ER ES ET FI FJ FK FM FO FR
GA GB GD GE GF GG GH GI GL GM GN GP GQ GR GS GT GU GW GY HK HM HN HR HT HU ID IE IL IM IN IO IQ IR IS IT JE JM JO JP
KE KG KH KI KM KN KP KR KW KY KZ LA LB LC LI LK LR LS LT LU LV LY MA MC MD ME MF MG MH MK ML MM MN MO MP MQ MR MS MT
MU MV MW MX MY MZ NA NC NE NF NG NI NL NO NP NR NU NZ OM PA PE PF PG PH PK PL PM PN PR PS PT PW PY QA RE RO RS RU RW
SA SB SC SD SE SG SH SI SJ SK SL SM SN SO SR SS ST SV SX SY SZ TC TD TF TG TH TJ TK TL TM TN TO TR TT TV TW TZ
UA UG UM US UY UZ VA VC VE VG VI VN VU WF WS YE YT ZA ZM ZW`
