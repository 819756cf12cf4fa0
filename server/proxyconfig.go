package server

import (
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/sbx-star/sbx-star/wire"
)

// This file defines proxy_config (protocol.md §2.11, §16.6). This server has no
// egress proxy. One that is to do what it can keeps the configuration, sets the
// variables of its rules, and tells secrets to nobody; any other refuses it.

// decodeAt reads the field of a body into a type. Null and {} ask for nothing,
// which is reported.
func decodeAt(field string, raw json.RawMessage, into any) (asked bool, err error) {
	if len(raw) == 0 || string(raw) == "null" {
		return false, nil
	}
	err = json.Unmarshal(raw, into)
	if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return true, invalid(strings.TrimSuffix("body."+field+"."+wrong.Field, "."), "want %s, got %s", inWords(wrong.Type), wrong.Value)
	}
	if err != nil {
		return true, invalid("body."+field, "not JSON: %v", err)
	}
	var fields map[string]any
	err = json.Unmarshal(raw, &fields)
	return len(fields) > 0, err
}

// proxyConfig reads and checks the field of a body; nil is none.
func (s *Server) proxyConfig(raw json.RawMessage) (*wire.ProxyConfig, error) {
	var config wire.ProxyConfig
	asked, err := decodeAt("proxy_config", raw, &config)
	if err != nil || !asked {
		return nil, err
	}
	const at = "body.proxy_config."
	if a := config.AccessControl; a != nil && len(a.AllowList) > 0 && len(a.DenyList) > 0 {
		return nil, invalid(at+"access_control", "allow_list and deny_list exclude each other")
	}
	for i, rule := range config.Rules {
		at := at + "rules." + strconv.Itoa(i)
		if strings.TrimSpace(rule.Name) == "" {
			return nil, invalid(at+".name", "a rule needs a name")
		}
		if err := checkEnv(at+".env_vars", rule.EnvVars); err != nil {
			return nil, err
		}
	}
	if !s.options.BestEffort {
		return nil, unsupported("proxy_config", "this server has no egress proxy; start it with --best-effort to have the configuration kept and the variables of its rules set, without it")
	}
	config.NoProxy = nil // which is ignored since §16.10
	if config.Rules == nil {
		config.Rules = []wire.ProxyRule{}
	}
	return &config, nil
}

// secretsOf are the places of a configuration that hold secrets, by names that
// stay the same when rules change places.
func secretsOf(config *wire.ProxyConfig) map[string]*wire.Secret {
	secrets := map[string]*wire.Secret{}
	for i := range config.Rules {
		rule := &config.Rules[i]
		if a := rule.AWS; a != nil {
			secrets[rule.Name+"/aws/id"], secrets[rule.Name+"/aws/key"] = &a.AccessKeyID, &a.SecretAccessKey
		}
		if g := rule.GCP; g != nil {
			secrets[rule.Name+"/gcp"] = &g.ServiceAccountJSON
		}
	}
	return secrets
}

const plaintext = "plaintext" // a header that is no secret

// carryOver takes over from before the opaque values that a new configuration
// leaves out.
func carryOver(config, before *wire.ProxyConfig) {
	if config == nil || before == nil {
		return
	}
	old := secretsOf(before)
	for place, secret := range secretsOf(config) {
		if was := old[place]; was != nil && secret.Value == "" && secret.Type == was.Type {
			secret.Value = was.Value
		}
	}
	values := map[string]string{}
	for _, rule := range before.Rules {
		for _, h := range rule.Headers {
			values[rule.Name+"/"+h.Type+"/"+h.Name] = h.Value
		}
	}
	for _, rule := range config.Rules {
		for i, h := range rule.Headers {
			if h.Value == "" && h.Type != plaintext {
				rule.Headers[i].Value = values[rule.Name+"/"+h.Type+"/"+h.Name]
			}
		}
	}
}

// redacted is a configuration as it is answered (protocol.md §13 #28): of a secret
// its type, and whether it has a value.
func redacted(config *wire.ProxyConfig) *wire.ProxyConfig {
	if config == nil {
		return nil
	}
	v := *config
	v.Rules = slices.Clone(config.Rules)
	for i := range v.Rules {
		rule := &v.Rules[i]
		if rule.AWS != nil {
			aws := *rule.AWS
			rule.AWS = &aws
		}
		if rule.GCP != nil {
			gcp := *rule.GCP
			rule.GCP = &gcp
		}
		rule.Headers = slices.Clone(rule.Headers)
		for i, h := range rule.Headers {
			if h.Type != plaintext {
				set := h.Value != ""
				rule.Headers[i].Value, rule.Headers[i].IsSet = "", &set
			}
		}
	}
	for _, secret := range secretsOf(&v) {
		set := secret.Value != ""
		secret.Value, secret.IsSet = "", &set
	}
	return &v
}

// ruleEnv are the variables of the rules that are enabled.
func ruleEnv(config *wire.ProxyConfig) map[string]string {
	env := map[string]string{}
	if config != nil {
		for _, rule := range config.Rules {
			if rule.Enabled == nil || *rule.Enabled {
				maps.Copy(env, rule.EnvVars)
			}
		}
	}
	return env
}
