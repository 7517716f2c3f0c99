//! Attention: projections, rotation, the unit, and the output's projection.

use t3c_ir::{TensorType, Val, units::Unit};

use super::{
    Role,
    config::Norm,
    layer::{Inputs, Place},
};
use crate::{Error, nn};

impl<'c, 'a> Place<'_, 'c, 'a> {
    /// What attention adds to the residual stream, without its bias, and the caches in decode.
    pub(super) fn attention(
        &self,
        normal: Val<'c, 'a>,
        inputs: &Inputs<'c, 'a>,
    ) -> Result<(Val<'c, 'a>, Vec<Val<'c, 'a>>), Error> {
        let transposed = self.decoder.config.names.transposed;
        let [q, k, v, o] = if transposed {
            ["nd,dkgci->nkgci", "nd,dkci->nkci", "nd,dkh->nkh", "nkgh,kghd->nd"]
        } else {
            ["nd,kgcid->nkgci", "nd,kcid->nkci", "nd,khd->nkh", "nkgh,dkgh->nd"]
        };
        let project = |specification, role| {
            let product = self.product(specification, normal, role)?;
            self.biased(product, role)
        };
        let (q, k, v) = (project(q, Role::Query)?, project(k, Role::Key)?, project(v, Role::Value)?);
        let q = self.head_norm(q, nn::NormDims::QUERIES, Role::Query, Role::QueryNorm)?;
        let k = self.head_norm(k, nn::NormDims::KEYS, Role::Key, Role::KeyNorm)?;
        let (q, k) = match inputs.rotation {
            Some(rotation) => (
                self.at(Role::Query).contract("nkgci,ncei->nkgei", q, rotation)?,
                self.at(Role::Key).contract("nkci,ncei->nkei", k, rotation)?,
            ),
            None => (q, k),
        };
        let (attended, caches) = self.attend([q, k, v], inputs)?;
        Ok((self.product(o, attended, Role::Output)?, caches))
    }

    /// Each head normalised, where the family does so.
    fn head_norm(
        &self,
        x: Val<'c, 'a>,
        dims: nn::NormDims,
        role: Role,
        norm: Role,
    ) -> Result<Val<'c, 'a>, Error> {
        let Some(weight) = self.find(norm, false) else { return Ok(x) };
        let config = &self.decoder.config;
        let gain = match config.norm {
            Norm::RmsPlusOne => nn::Gain::OnePlusWeight,
            _ => nn::Gain::Weight,
        };
        Ok(nn::rms_norm_over(&self.at(role), dims, x, weight, gain, config.rms_norm_eps)?)
    }

    fn attend(
        &self,
        [q, k, v]: [Val<'c, 'a>; 3],
        inputs: &Inputs<'c, 'a>,
    ) -> Result<(Val<'c, 'a>, Vec<Val<'c, 'a>>), Error> {
        let names = &self.decoder.config.names;
        let module = names.query.rsplit_once('.').map_or("attention", |(module, _)| module);
        let location = self.decoder.location(self.b.context(), "num_attention_heads");
        let b = self.b.at(location).named(&format!("{}.*.{module}", names.layers));
        let query = TensorType::of(q)?;
        let plan = &self.decoder.plan;
        let (unit, arguments) = match (inputs.subtree_end, inputs.block_table, inputs.position) {
            (Some(end), _, position) => {
                let position = position.filter(|_| self.kind.window.is_some());
                (Unit::attention(&query), [vec![q, k, v, end], position.into_iter().collect()].concat())
            }
            (None, Some(table), Some(position)) => {
                let arguments = [&[q, k, v], inputs.caches.as_slice(), &[table, position]].concat();
                (Unit::attention_paged(&query, plan.blocks, plan.table), arguments)
            }
            _ => return Err(t3c_ir::Error::Mlir("nothing tells which tokens a token sees".into()).into()),
        };
        let mut results = nn::call_unit(&b, self.module.op(), &self.options(unit), &arguments)?;
        let caches = results.split_off(1);
        Ok((results[0], caches))
    }

    /// The family's attention.
    fn options(&self, unit: Unit) -> Unit {
        let config = &self.decoder.config;
        let unit = match config.query_scale {
            Some(scale) => unit.scaled(scale),
            None => unit,
        };
        let unit = match config.attention_softcap {
            Some(cap) => unit.softcapped(cap),
            None => unit,
        };
        let unit = match self.kind.window {
            Some(window) => unit.windowed(window),
            None => unit,
        };
        if self.decoder.plan.parallel.tokens().is_empty() { unit } else { unit.aligned() }
    }
}
